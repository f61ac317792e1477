"""What tests of the engine and of the server share: a tiny model; a server around an engine whose rewards are known."""

import contextlib
import time
from pathlib import Path

import pytest
from fake_scorer import FakeScorer
from serving import HeldModel, fitted
from starlette.testclient import TestClient

from bayesrm_fast.serve.app import create_app

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def rm():
    """A tiny model with its posterior."""
    return fitted()


@pytest.fixture
def held(monkeypatch):
    """What every model's forward pass goes through; see `HeldModel`."""
    with HeldModel(monkeypatch) as model:
        yield model


@contextlib.contextmanager
def warm(app):
    """A client of a server, once it is warm."""
    with TestClient(app, raise_server_exceptions=False) as client:
        while client.get("/health").status_code != 200:
            pass
        yield client


@pytest.fixture(scope="session")
def lasting():
    """A server with the defaults and its engine: starting one takes longer than most tests do."""
    scorer = FakeScorer()
    with warm(create_app({"rm": scorer})) as client:
        yield client, scorer


@pytest.fixture
def scorer(lasting):
    """The engine of the model `rm`, as if it were new."""
    lasting[1].begin()
    return lasting[1]


@pytest.fixture
def client(lasting, scorer):
    """A client of the server that all tests share."""
    return lasting[0]


@pytest.fixture
def served(scorer):
    """A client of a server of one's own, with the model `rm`."""
    return lambda options=None, **scorers: warm(create_app(scorers or {"rm": scorer}, options))


@pytest.fixture
def golden(client, monkeypatch):
    """Whether a request of exactly these bytes gets an answer of exactly these."""
    monkeypatch.setattr(time, "time", lambda: 1_760_000_000.0)

    def check(name, path):
        headers = {"Content-Type": "application/json", "X-Request-Id": "golden"}
        sent = (GOLDEN / f"{name}.request.json").read_bytes().rstrip(b"\n")
        answer = client.post(path, content=sent, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        assert answer.content == (GOLDEN / f"{name}.response.json").read_bytes().rstrip(b"\n")

    return check
