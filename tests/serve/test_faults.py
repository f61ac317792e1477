"""A server on the real engine, with a tiny model and injected faults."""

import asyncio
import contextlib

import httpx
import pytest
import torch
from serving import POISON, SECONDS, until
from tolerances import RELATIVE

from bayesrm_fast.serve.app import create_app
from bayesrm_fast.serve.engine import AsyncScorer
from bayesrm_fast.serve.options import ServerOptions

TEXTS = ["able act", "act again add", "age ago", "air all almost"]


@contextlib.asynccontextmanager
async def serving(rm, options=None, **limits):
    """A warm server, its client and its engine."""
    scorer = AsyncScorer(rm, **limits)
    app = create_app({"rm": scorer}, options)
    transport = httpx.ASGITransport(app=app)
    async with (
        asyncio.timeout(2 * SECONDS),
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://server") as client,
    ):
        await until(lambda: app.state.served.is_ready)
        yield client, scorer


def asked(client, *texts):
    return asyncio.create_task(client.post("/get_reward", json={"query": list(texts)}))


async def behind_one(client, scorer, held, *requests):
    """Answers of requests that came while the model was at another one, and so share a batch."""
    held.wait_for_batch()  # the warm-up's
    held.hold()
    first = asked(client, "able")
    await asyncio.to_thread(held.wait_for_batch)
    tasks = [asked(client, *texts) for texts in requests]
    await until(lambda: scorer.stats().queued_requests == len(tasks))
    held.let_go()
    assert (await first).status_code == 200
    return await asyncio.gather(*tasks)


def test_a_poisoned_row_of_a_merged_batch_fails_its_own_request_alone(rm, held):
    held.poison = [rm.tokenizer.convert_tokens_to_ids(POISON)]

    async def main():
        async with serving(rm) as (client, scorer):
            merged = await behind_one(client, scorer, held, *([text] for text in TEXTS), ["able", f"act {POISON}"])
            return merged, [await asked(client, text) for text in TEXTS]

    (*good, bad), alone = asyncio.run(main())
    for one, other in zip(good, alone, strict=True):
        assert one.json()["rewards"] == pytest.approx(other.json()["rewards"], rel=RELATIVE[torch.float32])
    assert bad.status_code == 422
    assert bad.json()["error"]["message"].startswith("text 2")


def test_a_batch_that_runs_out_of_memory_is_halved_unseen(rm, held):
    def small_memory(ids):
        if len(ids) > 2:
            raise torch.OutOfMemoryError("no memory")

    held.fault = small_memory

    async def main():
        async with serving(rm) as (client, scorer):
            found = await behind_one(client, scorer, held, *([text] for text in TEXTS))
            return found, (await client.get("/metrics")).text

    found, page = asyncio.run(main())
    assert [answer.status_code for answer in found] == [200] * len(TEXTS)
    assert 'bayesrm_memory_halvings_total{model="rm"} 0.0' not in page


def test_a_row_that_never_fits_is_refused_as_one_that_does_not_now(rm, held):
    def no_memory(ids):
        if ids.shape[1] > 10:
            raise torch.OutOfMemoryError("no memory")

    held.fault = no_memory

    async def main():
        async with serving(rm) as (client, _):
            return await client.post("/get_reward", json={"query": ["able " * 20]})

    answer = asyncio.run(main())
    assert answer.status_code == 503
    assert "more memory than there is" in answer.json()["error"]["message"]


def test_a_full_queue_refuses_native_requests_and_keeps_drop_ins(rm, held):
    async def main():
        async with serving(rm, max_queue_tokens=40, max_wait_ms=0) as (client, scorer):
            held.wait_for_batch()
            held.hold()
            first = asked(client, "able")
            await asyncio.to_thread(held.wait_for_batch)
            waiting = [asked(client, "able " * 30) for _ in range(3)]
            await until(lambda: scorer.stats().queue_tokens >= 30)
            refused = await client.post("/v1/rewards", json={"prompt": "able", "responses": ["act " * 30]})
            held.let_go()
            return refused, await asyncio.gather(first, *waiting)

    refused, accepted = asyncio.run(main())
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in accepted] == [200] * 4


def test_a_request_larger_than_the_queue_is_told_the_numbers(rm):
    async def main():
        async with serving(rm, max_queue_tokens=40) as (client, _):
            return await client.post("/get_reward", json={"query": ["able " * 30] * 3})

    answer = asyncio.run(main())
    assert answer.status_code == 422
    assert "max_queue_tokens is 40" in answer.json()["error"]["message"]


def test_patience_takes_a_request_out_of_the_queue(rm, held):
    async def main():
        async with serving(rm, ServerOptions(patience=0.05)) as (client, scorer):
            held.wait_for_batch()
            held.hold()
            answer = await client.post("/get_reward", json={"query": ["able"]})
            held.let_go()
            await until(lambda: scorer.stats().queue_tokens == 0)
            return answer, scorer.stats()

    answer, stats = asyncio.run(main())
    assert answer.status_code == 503
    assert stats.cancelled == 1


def test_an_engine_that_dies_leaves_nobody_waiting(rm, held):
    class Killed(BaseException):
        pass

    def kill(ids):
        raise Killed("a text of a client")

    async def main():
        async with serving(rm) as (client, _):
            held.fault = kill
            answers = await asyncio.gather(*(client.post("/get_reward", json={"query": [text]}) for text in TEXTS))
            return [*answers, await client.get("/health")]

    answers = asyncio.run(main())
    assert [answer.status_code for answer in answers] == [503] * 5
    assert not any("a text of a client" in answer.text for answer in answers)
