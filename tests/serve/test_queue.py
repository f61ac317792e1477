"""A queue that is full, left, drained and closed."""

import asyncio
import threading

import pytest
from serving import PROMPTS, SECONDS, assert_agree, batch_came, queued, responses, run, text, until

from bayesrm_fast import InputError
from bayesrm_fast.serve.engine import AsyncScorer, EngineClosed, QueueFull


def test_a_cancelled_request_leaves_the_queue_with_its_tokens(rm, held):
    async def main():
        async with AsyncScorer(rm) as scorer:
            held.hold()
            first = asyncio.create_task(scorer.score(PROMPTS[0], responses(0)))
            await batch_came(held)
            others = [asyncio.create_task(scorer.score(p, responses(i))) for i, p in enumerate(PROMPTS)]
            await queued(scorer, 12)
            before = scorer.stats().queue_tokens
            for one in others[1:]:
                one.cancel()
            await asyncio.gather(*others[1:], return_exceptions=True)
            stats = scorer.stats()
            assert (stats.queued_requests, stats.cancelled) == (1, 11)
            assert 0 < stats.queue_tokens < before
            held.let_go()
            await asyncio.gather(first, others[0])
            assert scorer.stats().queue_tokens == 0

    run(main())
    assert held.rows() == [4, 4]


def test_a_request_that_is_cancelled_while_it_runs_hurts_nobody(rm, held):
    async def main():
        async with AsyncScorer(rm) as scorer:
            held.hold()
            first = asyncio.create_task(scorer.score(PROMPTS[3], responses(0)))
            await batch_came(held)
            both = [asyncio.create_task(scorer.score(p, responses(0))) for p in PROMPTS[:2]]
            await queued(scorer, 2)
            held.let_one_go()
            await first
            await batch_came(held)
            both[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await both[0]
            held.let_go()
            assert_agree(await both[1], rm.score([PROMPTS[1]] * 4, responses(0)))
            assert scorer.stats().cancelled == 1
            assert_agree(await scorer.rewards(PROMPTS[2], responses(2)), rm.rewards([PROMPTS[2]] * 4, responses(2)))

    run(main())
    assert held.rows()[:2] == [4, 8]


def test_a_request_that_is_cancelled_while_it_is_tokenized_never_runs(rm, held, monkeypatch):
    came, may_go = threading.Event(), threading.Event()
    encode = rm.encoder.encode

    def slow(*args, **options):
        came.set()
        assert may_go.wait(SECONDS)
        return encode(*args, **options)

    monkeypatch.setattr(rm.encoder, "encode", slow)

    async def main():
        async with AsyncScorer(rm) as scorer:
            asked = [asyncio.create_task(scorer.score(p, responses(0))) for p in PROMPTS[:3]]
            await asyncio.to_thread(came.wait, SECONDS)
            for one in asked[:2]:  # the first is being tokenized, the second waits for that
                one.cancel()
            await asyncio.gather(*asked[:2], return_exceptions=True)
            stats = scorer.stats()
            assert (stats.queued_requests, stats.cancelled) == (1, 2)
            may_go.set()
            await asked[2]
            assert scorer.stats().queue_tokens == 0

    run(main())
    assert held.rows() == [4]


def test_a_full_queue_refuses_or_lets_wait(rm, held):
    async def main():
        async with AsyncScorer(rm, max_queue_tokens=100) as scorer:
            held.hold()
            first = asyncio.create_task(scorer.rewards(PROMPTS[0], responses(0)))
            await batch_came(held)
            in_queue = [asyncio.create_task(scorer.rewards(PROMPTS[1], [text(30, 1)])) for _ in range(2)]
            await queued(scorer, 2)
            assert scorer.stats().queue_tokens > 60
            with pytest.raises(
                QueueFull, match=r"the request has about \d+ tokens, and \d+ of 100 are taken"
            ) as raised:
                await scorer.rewards(PROMPTS[2], [text(40, 2)], wait=False)
            assert raised.value.retry_after > 0
            waiting = [asyncio.create_task(scorer.rewards(p, [text(40, 2)])) for p in PROMPTS[3:6]]
            await asyncio.sleep(0)
            with pytest.raises(QueueFull):  # nobody passes by those that wait for room
                await scorer.rewards(PROMPTS[2], ["a"], wait=False)
            waiting[0].cancel()
            await asyncio.gather(waiting[0], return_exceptions=True)
            stats = scorer.stats()
            assert (stats.queued_requests, stats.refused, stats.cancelled) == (4, 2, 1)
            held.let_go()
            await asyncio.gather(first, *in_queue, *waiting[1:])
            return scorer.stats()

    stats = run(main())
    assert (stats.queue_tokens, stats.queued_requests) == (0, 0)


@pytest.mark.parametrize("leaves", ["it is cancelled", "it runs"])
def test_a_request_that_leaves_the_queue_makes_room_for_one_that_waits(rm, held, leaves):
    async def main():
        async with AsyncScorer(rm, max_queue_tokens=60) as scorer:
            held.hold()
            first = asyncio.create_task(scorer.rewards(PROMPTS[0], ["a"]))
            await batch_came(held)
            leaving = asyncio.create_task(scorer.rewards(PROMPTS[1], [text(40, 1)]))
            await queued(scorer, 1)
            waiting = asyncio.create_task(scorer.rewards(PROMPTS[2], [text(40, 2)]))
            await until(lambda: scorer.stats().queued_requests == 2)
            if leaves == "it runs":
                held.let_one_go()
                await first
                await batch_came(held)
            else:
                leaving.cancel()
            await queued(scorer, 1)  # though the model is held
            assert not waiting.done()
            held.let_go()
            await asyncio.gather(first, leaving, waiting, return_exceptions=True)
            assert waiting.exception() is None

    run(main())


def test_a_request_larger_than_the_queue_is_told_the_numbers(rm):
    async def main():
        async with AsyncScorer(rm, max_queue_tokens=100) as scorer:
            with pytest.raises(InputError, match=r"the request has \d{3} tokens, and max_queue_tokens is 100"):
                await scorer.rewards(PROMPTS[0], responses(0, 40))
            assert scorer.stats().queue_tokens == 0
            await scorer.rewards(PROMPTS[0], responses(0), wait=False)

    run(main())


def test_when_to_come_again_follows_from_the_speed(rm, held):
    def tokens(answers):
        return sum(row.length for row in rm.tokenize([PROMPTS[0]] * len(answers), answers))

    async def main():
        async with AsyncScorer(rm, max_queue_tokens=80) as scorer:
            await scorer.rewards(PROMPTS[0], responses(0))
            await batch_came(held)
            held.hold()
            running = asyncio.create_task(scorer.rewards(PROMPTS[0], [text(30, 1)]))
            await batch_came(held)
            waiting = asyncio.create_task(scorer.rewards(PROMPTS[0], [text(50, 1)]))
            await until(lambda: scorer.stats().queue_tokens == tokens([text(50, 1)]))
            with pytest.raises(QueueFull) as raised:
                await scorer.rewards(PROMPTS[0], [text(50, 1)], wait=False)
            seconds = scorer.stats().seconds
            held.let_go()
            await asyncio.gather(running, waiting)
            return raised.value.retry_after, seconds

    retry_after, seconds = run(main())
    left = tokens([text(30, 1), text(50, 1)])
    assert retry_after == pytest.approx(left * seconds / tokens(responses(0)))


def test_a_drain_finishes_what_was_accepted(rm, held):
    async def main():
        scorer = AsyncScorer(rm, max_queue_tokens=200, max_batch_tokens=100)
        held.hold()
        asked = [asyncio.create_task(scorer.score(p, responses(i))) for i, p in enumerate(PROMPTS)]
        await batch_came(held)
        draining = asyncio.create_task(scorer.drain())
        await asyncio.sleep(0)
        for refused in (True, False):
            with pytest.raises(EngineClosed):
                await scorer.score(PROMPTS[0], responses(0), wait=refused)
        held.let_go()
        await draining
        assert all(one.done() for one in asked) or await asyncio.gather(*asked)
        await scorer.drain()
        await scorer.close()
        return [await one for one in asked], scorer

    found, scorer = run(main())
    for i, one in enumerate(found):
        assert_agree(one, rm.score([PROMPTS[i]] * 4, responses(i)))
    scorer._worker.join(SECONDS)
    assert not any(thread.is_alive() for thread in scorer._worker._threads)


def test_a_close_ends_the_batch_that_runs_and_refuses_the_rest(rm, held):
    async def main():
        scorer = AsyncScorer(rm, max_queue_tokens=300, max_wait_ms=0)
        held.hold()
        running = asyncio.create_task(scorer.rewards(PROMPTS[0], responses(0)))
        await batch_came(held)
        waiting = [asyncio.create_task(scorer.score(p, responses(i))) for i, p in enumerate(PROMPTS)]
        await until(lambda: scorer.stats().queued_requests == 12)  # some of them without room
        closing = asyncio.create_task(scorer.close())
        found = await asyncio.gather(*waiting, return_exceptions=True)  # at once, while the batch is still held
        assert {type(one) for one in found} == {EngineClosed}
        assert not running.done()
        held.let_go()
        await closing
        assert_agree(await running, rm.rewards([PROMPTS[0]] * 4, responses(0)))
        with pytest.raises(EngineClosed):
            await scorer.rewards(PROMPTS[0], responses(0))
        return scorer.stats()

    stats = run(main())
    assert (stats.queue_tokens, stats.queued_requests, stats.cancelled) == (0, 0, 0)
