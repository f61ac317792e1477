"""What is refused before any route sees it, and what becomes of a request whose client has left."""

import asyncio
import json

import pytest

from bayesrm_fast.serve import limits
from bayesrm_fast.serve.answers import ApiError
from bayesrm_fast.serve.app import create_app
from bayesrm_fast.serve.limits import check_json
from bayesrm_fast.serve.options import ServerOptions

BODY = b'{"query": ["able"]}'
SECRET = "a text of a client"


def nested(depth):
    return b'{"query": ["able"], "labels": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"query": ["\xff"]}', "the body is not valid UTF-8: see byte 12"),
        (BODY.decode().encode("utf-16"), "the body is not valid UTF-8: see byte 0"),
        (b'{"query": ["a text of a client", }', "the body is not valid JSON: Expecting value at line 1, column 34"),
        (b"\xef\xbb\xbf" + BODY, "the body is not valid JSON: "),
        (b'{"query": ["\\ud800 a text of a client"]}', "the body has a lone surrogate"),
        (b'{"query": ["able"], "a text of a client \\udFff": 1}', "the body has a lone surrogate"),
        (b'{"query": ["able"], "k": NaN}', "the body has NaN"),
        (b'{"query": ["able"], "labels": [{"a": -Infinity}]}', "the body has -Infinity"),
        (b'{"query": ["able"], "k": 1e999}', "the body has a number that is too large"),
        (b'{"query": ["able"], "k": ' + b"9" * 5000 + b"}", "the body has a whole number of 5000 digits"),
        (b'{"query": ["able"], "k": -9223372036854775808}', "the body has a whole number of 20 digits"),
        (nested(33), "the body is nested too deeply: at most 32 arrays or objects"),
        (b"[" * 200_000, "the body is nested too deeply"),
    ],
)
def test_a_body_that_cannot_be_read_gets_one_sentence(client, body, sentence):
    answer = client.post("/get_reward", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(sentence)
    assert "\n" not in answer.json()["error"]["message"]
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        nested(32),
        b'{"a": 9223372036854775807, "b": "\\ud83d\\ude00", "c": 1e308}',
        b'"\\\\ud800"',
        "ü".encode()[:0] + b"[]",
    ],
)
def test_what_is_within_the_limits_passes(body):
    check_json(body, 32)


def test_every_level_counts_and_no_width_does():
    check_json(json.dumps([[1]] * 10_000).encode(), 2)
    with pytest.raises(ApiError, match="at most 2"):
        check_json(b"[[[]]]", 2)


@pytest.mark.parametrize("told", [True, False])
def test_a_body_that_is_too_large_is_refused(served, told):
    """By its length where that is told, or as soon as it has come that far."""
    with served(ServerOptions(max_body_bytes=100)) as client:
        body = b'{"query": ["' + b"a" * 200 + b'"]}'
        answer = client.post(
            "/get_reward",
            content=body if told else iter([body[:90], body[90:]]),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 413
        assert answer.json()["error"]["message"] == "the body is larger than the 100 bytes that are taken"
        assert client.post("/get_reward", json={"query": ["able"]}).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(scorer, monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.01)
    sent = asyncio.run(asgi(create_app({"rm": scorer}), [{"type": "http.request", "body": BODY, "more_body": True}]))
    assert sent[0]["status"] == 408


class TestToken:
    @pytest.fixture
    def client(self, served):
        with served(ServerOptions(token="s3cret")) as client:
            yield client

    @pytest.mark.parametrize("given", [None, "Bearer s3cre", "Bearer s3crets", "Basic s3cret", "s3cret", "Bearer "])
    def test_a_wrong_one_is_refused(self, client, given):
        headers = {} if given is None else {"Authorization": given}
        for answer in (client.get("/v1/models", headers=headers), client.get("/metrics", headers=headers)):
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "s3cre" not in answer.text

    @pytest.mark.parametrize("given", ["Bearer s3cret", "bearer s3cret"])
    def test_the_right_one_passes(self, client, given):
        assert client.get("/v1/models", headers={"Authorization": given}).status_code == 200

    def test_a_probe_and_the_pages_need_none(self, client):
        assert [client.get(path).status_code for path in ("/health", "/docs", "/openapi.json")] == [200] * 3

    def test_it_is_compared_in_constant_time(self, client, monkeypatch):
        compared = []
        same = limits.hmac.compare_digest
        monkeypatch.setattr(limits.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or same(a, b))
        client.get("/v1/models", headers={"Authorization": "Bearer x"})
        assert [(len(a), len(b)) for a, b in compared] == [(32, 32)]


@pytest.mark.parametrize(("given", "is_kept"), [("run-7.a_b", True), ("a text", False), ("x" * 65, False), ("", False)])
def test_a_request_has_an_id(client, given, is_kept):
    found = client.get("/health", headers={"X-Request-Id": given}).headers["x-request-id"]
    assert (found == given) == is_kept
    assert len(found) == 32 or is_kept


async def asgi(app, messages, leaves=None, path="/get_reward"):
    """What an app sends for these messages of a client, which leaves when `leaves` is set."""
    waiting = list(messages)
    sent = []

    async def receive():
        if waiting:
            return waiting.pop(0)
        await (leaves or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "server": ("server", 80),
        "client": ("client", 1),
        "scheme": "http",
        "root_path": "",
    }
    await app(scope, receive, send)
    return sent


def test_a_client_that_leaves_has_its_request_cancelled(scorer):
    async def leave():
        scorer.held, leaves = asyncio.Event(), asyncio.Event()
        whole = [{"type": "http.request", "body": BODY, "more_body": False}]
        running = asyncio.create_task(asgi(create_app({"rm": scorer}), whole, leaves))
        while not scorer.begun:
            await asyncio.sleep(0)
        leaves.set()
        return await running

    assert asyncio.run(leave()) == []
    assert scorer.cancelled == [["able"]]


def test_a_client_that_leaves_before_its_body_is_whole_asks_nothing(scorer):
    leaves = asyncio.Event()
    leaves.set()
    part = [{"type": "http.request", "body": BODY[:5], "more_body": True}]
    assert asyncio.run(asgi(create_app({"rm": scorer}), part, leaves)) == []
    assert scorer.begun == []
