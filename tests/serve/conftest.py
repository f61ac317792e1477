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


@pytest.fixture
def scorer():
    """The engine of the model `rm`."""
    return FakeScorer()


@pytest.fixture
def served(scorer):
    """A client of a server with the model `rm`, once it is warm."""

    @contextlib.contextmanager
    def start(options=None, **scorers):
        with TestClient(create_app(scorers or {"rm": scorer}, options), raise_server_exceptions=False) as client:
            while client.get("/health").status_code != 200:
                pass
            yield client

    return start


@pytest.fixture
def client(served):
    """The same with the defaults."""
    with served() as client:
        yield client


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
