"""A request's way to a model: waiting, refusing, counting."""

import asyncio

import httpx
import pytest
from fake_scorer import FakeScorer

from bayesrm_fast import InputError
from bayesrm_fast.serve.app import create_app
from bayesrm_fast.serve.options import ServerOptions

DROP_IN = ("/get_reward", {"query": ["able"]})
NATIVE = ("/v1/rewards", {"prompt": "able", "responses": ["act"]})


def test_a_native_route_refuses_at_once_where_the_queue_is_full(client, scorer):
    scorer.is_full = True
    for path in ("/v1/rewards", "/v1/best_of_n", "/v1/covariance"):
        answer = client.post(path, json=NATIVE[1])
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "3"
        assert answer.json()["error"]["message"] == "the queue is full: try again in 3 s"


def test_a_drop_in_waits_for_room(scorer):
    async def wait():
        app = create_app({"rm": scorer})
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            scorer.is_full = True
            waiting = asyncio.create_task(client.post(DROP_IN[0], json=DROP_IN[1]))
            assert (await client.post(NATIVE[0], json=NATIVE[1])).status_code == 503
            assert not waiting.done()
            scorer.room.set()
            return (await waiting).status_code

    assert asyncio.run(wait()) == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        DROP_IN,
        ("/classify", {"input": "able"}),
        ("/rerank", {"query": "able", "documents": ["act"]}),
        ("/reward", {"prompt": "able", "response": "act"}),
        ("/reward?prompts=plain", {"prompt": "able", "response": "act"}),
    ],
)
def test_a_drop_in_does_not_wait_for_longer_than_its_client(served, scorer, path, body):
    """503, and never the 429 on which trainers give up."""
    with served(ServerOptions(patience=0.01)) as client:
        scorer.is_full = True
        answer = client.post(path, json=body)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "no answer within 0.01 s" in answer.json()["error"]["message"]


def test_an_accepted_request_that_takes_too_long_leaves_the_engine(served, scorer):
    with served(ServerOptions(patience=0.01)) as client:
        scorer.held = asyncio.Event()
        assert client.post(DROP_IN[0], json=DROP_IN[1]).status_code == 503
    assert scorer.cancelled == [["able"]]


@pytest.mark.parametrize("request_", [DROP_IN, NATIVE], ids=["drop-in", "native"])
def test_a_server_that_shuts_down_says_so(client, scorer, request_):
    asyncio.run(scorer.drain())
    answer = client.post(request_[0], json=request_[1])
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["message"] == "the server is shutting down, or a model of it has failed"


@pytest.mark.parametrize(
    ("path", "body"),
    [("/get_reward", {"query": ["able"] * 3}), ("/v1/rewards", NATIVE[1] | {"responses": ["act"] * 3})],
)
def test_too_many_texts_are_refused_with_the_number(served, path, body):
    with served(ServerOptions(max_responses=2)) as client:
        answer = client.post(path, json=body)
        assert answer.status_code == 422
        assert answer.json()["error"]["message"] == ("the request has 3 texts to score, and at most 2 are taken in one")


def test_a_server_without_models_is_refused():
    with pytest.raises(InputError, match="no model"):
        create_app({})


def test_the_first_model_is_asked_by_default(served):
    with served(first=FakeScorer(), second=FakeScorer()) as client:
        assert client.post(NATIVE[0], json=NATIVE[1]).json()["model"] == "first"
