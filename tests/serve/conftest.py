"""A server around an engine whose rewards are known, in this process."""

import contextlib
import time
from pathlib import Path

import pytest
from fake_scorer import FakeScorer
from starlette.testclient import TestClient

from bayesrm_fast.serve.app import create_app

GOLDEN = Path(__file__).parent / "golden"


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
