"""An engine in event loops and threads, with faults."""

import asyncio
import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from held_model import SECONDS, HeldModel
from tiny import WORDS, tiny_adapter, tiny_pairs, tiny_tokenizer, words
from tolerances import RELATIVE

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.select.rules import PenalisedReward, Rule
from bayesrm_fast.serve.engine import AsyncScorer, EngineClosed, QueueFull

ROOT = Path(__file__).resolve().parents[2]
POISON = WORDS[-1]


def text(count, seed):
    """Words without poison."""
    return words(count, seed).replace(POISON, WORDS[0])


PROMPTS = [text(3 + i % 4, 100 + i) for i in range(12)]


def responses(seed, count=4):
    return [text(1 + (seed + 5 * i) % 11, 20 * seed + i) for i in range(count)]


@pytest.fixture(scope="module")
def rm():
    return BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama")).fit(tiny_pairs(), rank=4)


@pytest.fixture
def held(rm, monkeypatch):
    model = HeldModel(monkeypatch)
    yield model
    model.let_go()


def run(main):
    return asyncio.run(asyncio.wait_for(main, 2 * SECONDS))


async def batch_came(held):
    await asyncio.to_thread(held.wait_for_batch)


async def until(condition):
    """Gives other tasks and threads their turns until it holds."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)


def similarities(count):
    return torch.eye(count, dtype=torch.float64).tolist()


OWN_RULE = PenalisedReward("std", 0.5)
CALLS = {
    "rewards": (
        lambda s, p, r: s.rewards(p, r),
        lambda rm, p, r: rm.rewards([p] * len(r), r),
    ),
    "score": (
        lambda s, p, r: s.score(p, r),
        lambda rm, p, r: rm.score([p] * len(r), r),
    ),
    "within the prompt": (
        lambda s, p, r: s.score(p, r, relative_to="prompt"),
        lambda rm, p, r: rm.score([p] * len(r), r, relative_to="prompt"),
    ),
    "to references": (
        lambda s, p, r: s.score(p, r, relative_to=[r[1], *r[:-1]]),
        lambda rm, p, r: rm.score([p] * len(r), r, relative_to=[r[1], *r[:-1]]),
    ),
    "best of n": (
        lambda s, p, r: s.best_of_n(p, r, "std", 0.7),
        lambda rm, p, r: rm.best_of_n(p, r, "std", 0.7),
    ),
    "by an absolute std": (
        lambda s, p, r: s.best_of_n(p, r, OWN_RULE, relative=False),
        lambda rm, p, r: rm.best_of_n(p, r, OWN_RULE, relative=False),
    ),
    "by similarities": (
        lambda s, p, r: s.best_of_n(p, r, "mbr", similarities=similarities(len(r))),
        lambda rm, p, r: rm.best_of_n(p, r, "mbr", similarities=similarities(len(r))),
    ),
    "covariance": (
        lambda s, p, r: s.covariance(p, r),
        lambda rm, p, r: rm.covariance(p, r),
    ),
    "rendered": (
        lambda s, p, r: s.score_text([f"{p}\n\n{one}" for one in r]),
        lambda rm, p, r: rm.score([p] * len(r), r),
    ),
}


def assert_agree(found, expected):
    if isinstance(expected, torch.Tensor):
        if expected.dtype == torch.bool:
            assert torch.equal(found, expected)
            return
        # Means and baselines are sums that cancel: their error is of the size of the model's largest rewards.
        torch.testing.assert_close(found, expected, rtol=RELATIVE[torch.float32], atol=1e-4, equal_nan=True)
        return
    assert type(found) is type(expected)
    for name, value in vars(expected).items():
        if isinstance(value, torch.Tensor):
            assert_agree(getattr(found, name), value)
        elif isinstance(value, float):
            assert getattr(found, name) == pytest.approx(value, abs=1e-4)
        else:
            assert getattr(found, name) == value


def test_requests_of_all_kinds_at_once_get_the_numbers_that_they_get_alone(rm):
    async def main():
        async with AsyncScorer(rm, max_batch_tokens=300) as scorer:
            asked = [asked(scorer, p, responses(i)) for i, p in enumerate(PROMPTS[:3]) for asked, _ in CALLS.values()]
            return await asyncio.gather(*asked)

    found = iter(run(main()))
    for i, prompt in enumerate(PROMPTS[:3]):
        for _, offline in CALLS.values():
            assert_agree(next(found), offline(rm, prompt, responses(i)))


def test_200_requests_of_three_threads_in_two_loops(rm):
    scorer = AsyncScorer(rm)
    names = ["rewards", "score", "within the prompt", "best of n"]
    start = threading.Barrier(2)

    async def ask(numbers):
        asked = [CALLS[names[i % len(names)]][0](scorer, PROMPTS[i % 12], responses(i % 12)) for i in numbers]
        return dict(zip(numbers, await asyncio.gather(*asked), strict=True))

    async def serve_others(loops, is_over):
        loops.append(asyncio.get_running_loop())
        await asyncio.to_thread(start.wait, SECONDS)
        own = await ask(range(70))
        await asyncio.to_thread(is_over.wait, SECONDS)
        return own

    async def of_its_own():
        await asyncio.to_thread(start.wait, SECONDS)
        return await ask(range(70, 140))

    loops, is_over = [], threading.Event()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(run, serve_others(loops, is_over))
        second = pool.submit(run, of_its_own())

        def from_outside():
            while not loops:
                start.broken  # noqa: B018
            return asyncio.run_coroutine_threadsafe(ask(range(140, 200)), loops[0]).result(SECONDS)

        third = pool.submit(from_outside)
        found = second.result(SECONDS) | third.result(SECONDS)
        is_over.set()
        found |= first.result(SECONDS)
    assert sorted(found) == list(range(200))
    expected = [CALLS[names[i % len(names)]][1](rm, PROMPTS[i], responses(i)) for i in range(12)]  # both of period 12
    for i, answer in found.items():
        assert_agree(answer, expected[i % 12])
    assert scorer.stats().queue_tokens == scorer.stats().queued_requests == 0
    run(scorer.drain())


def test_requests_that_wait_together_share_a_batch(rm, held):
    async def main():
        async with AsyncScorer(rm) as scorer:
            held.hold()
            first = asyncio.create_task(scorer.score(PROMPTS[0], responses(0)))
            await batch_came(held)
            rest = [asyncio.create_task(scorer.score(p, responses(0, 1))) for p in PROMPTS]
            await until(lambda: scorer.stats().queued_requests == len(PROMPTS))
            held.let_go()
            await asyncio.gather(first, *rest)
            return scorer.stats()

    stats = run(main())
    assert held.rows() == [4, len(PROMPTS)]
    assert stats.batches == 2
    assert stats.batch_tokens == sum(len(row) for batch in held.batches for row in batch)
    assert 0 < stats.padding < 1
    assert stats.seconds > 0


def test_a_rule_is_applied_to_several_prompts_at_once(rm, held):
    async def main():
        async with AsyncScorer(rm) as scorer:
            held.hold()
            first = asyncio.create_task(scorer.best_of_n(PROMPTS[0], responses(0)))
            await batch_came(held)
            rest = [
                asyncio.create_task(scorer.best_of_n(p, responses(i, 3), k=k))
                for i, p in enumerate(PROMPTS[:4])
                for k in (1, 2)
            ]
            await until(lambda: scorer.stats().queued_requests == 8)
            held.let_go()
            await asyncio.gather(first, *rest)

    run(main())
    assert held.rows() == [4, 12, 12]


def test_requests_of_one_prompt_share_its_beginning(rm, monkeypatch):
    prefilled = []
    from bayesrm_fast.model.forward import Forward

    prefill = Forward.prefill
    monkeypatch.setattr(
        Forward, "prefill", lambda self, batch: prefilled.append(batch.input_ids.shape) or prefill(self, batch)
    )
    prompt, answers = words(40, 1), [words(3 + i % 5, i) for i in range(24)]
    held = HeldModel(monkeypatch)

    async def main():
        async with AsyncScorer(rm, max_batch_tokens=200) as scorer:
            held.hold()
            first = asyncio.create_task(scorer.rewards(PROMPTS[0], responses(0)))
            await batch_came(held)
            rest = [asyncio.create_task(scorer.rewards(prompt, [answer])) for answer in answers]
            await until(lambda: scorer.stats().queued_requests == len(answers))
            held.let_go()
            await first
            return torch.cat(await asyncio.gather(*rest))

    found = run(main())
    assert [rows for rows, _ in prefilled] == [1]
    assert_agree(found, rm.rewards([prompt] * 24, answers))


def test_a_model_without_a_posterior_gives_rewards_alone():
    bare = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))

    async def main():
        async with AsyncScorer(bare) as scorer:
            texts = [f"{PROMPTS[0]}\n\n{one}" for one in responses(0)]
            found = await scorer.rewards(PROMPTS[0], responses(0)), await scorer.score_text(texts, variance=False)
            for asked in (scorer.score, scorer.best_of_n, scorer.covariance):
                with pytest.raises(InputError, match="no posterior"):
                    await asked(PROMPTS[0], responses(0))
            return found

    rewards, scores = run(main())
    expected = bare.rewards([PROMPTS[0]] * 4, responses(0))
    assert_agree(rewards, expected)
    assert_agree(scores.mean, expected)
    assert scores.variance.isnan().all()


def test_engines_of_two_adapters_on_one_base(model_folder):
    first = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    second = first.with_adapter(model_folder, "second")
    expected = second.score([PROMPTS[0]] * 4, responses(0))

    async def main():
        async with AsyncScorer(first) as one, AsyncScorer(second) as other:
            return await asyncio.gather(*(s.score(PROMPTS[0], responses(0)) for s in (one, other) * 3))

    for found in run(main()):
        assert_agree(found, expected)


ASKED = {
    "rewards": lambda s, p, r: s.rewards(p, r),
    "score": lambda s, p, r: s.score(p, r),
    "relative": lambda s, p, r: s.score(p, r, relative_to="prompt"),
    "best": lambda s, p, r: s.best_of_n(p, r),
    "covariance": lambda s, p, r: s.covariance(p, r),
    "text": lambda s, p, r: s.score_text(r),
}


@pytest.mark.parametrize("kind", ASKED)
def test_a_poisoned_row_fails_its_own_request_and_no_other(rm, held, kind):
    held.poison = [rm.tokenizer.convert_tokens_to_ids(POISON)]

    async def main():
        async with AsyncScorer(rm) as scorer:
            held.hold()
            first = asyncio.create_task(scorer.rewards(PROMPTS[0], responses(0)))
            await batch_came(held)
            texts = [responses(i) for i in range(9)]
            texts[5][2] += f" {POISON}"
            asked = [asyncio.create_task(ASKED[kind](scorer, PROMPTS[i], texts[i])) for i in range(9)]
            await until(lambda: scorer.stats().queued_requests == 9)
            held.let_go()
            await first
            return await asyncio.gather(*asked, return_exceptions=True), scorer.stats()

    found, stats = run(main())
    assert [i for i, one in enumerate(found) if isinstance(one, Exception)] == [5]
    name = "text" if kind == "text" else "response"
    assert isinstance(found[5], InputError)
    assert str(found[5]) == f"{name} 3: the model's reward is NaN or infinite"
    assert (stats.bisections > 0) == (kind != "covariance")
    if kind == "score":
        assert_agree(found[4], rm.score([PROMPTS[4]] * 4, responses(4)))


def test_every_bad_row_of_a_batch_is_found(rm, held):
    held.poison = [rm.tokenizer.convert_tokens_to_ids(POISON)]

    async def main():
        async with AsyncScorer(rm, max_wait_ms=0) as scorer:
            held.hold()
            first = asyncio.create_task(scorer.rewards(PROMPTS[0], responses(0)))
            await batch_came(held)
            asked = [
                asyncio.create_task(scorer.score(p, [POISON] if i % 3 else responses(i))) for i, p in enumerate(PROMPTS)
            ]
            await until(lambda: scorer.stats().queued_requests == 12)
            held.let_go()
            await first
            return await asyncio.gather(*asked, return_exceptions=True)

    assert [isinstance(one, InputError) for one in run(main())] == [bool(i % 3) for i in range(12)]


def test_out_of_memory_halves_the_batch_and_everybody_gets_numbers(held):
    rm = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama")).fit(tiny_pairs(), rank=4)

    def small_memory(ids):
        if ids.numel() > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")

    async def main():
        async with AsyncScorer(rm) as scorer:
            found = await asyncio.gather(*(scorer.score(p, responses(i)) for i, p in enumerate(PROMPTS)))
            return found, scorer.stats()

    held.fault = small_memory
    with pytest.warns(UserWarning, match="did not fit in memory"):
        found, stats = run(main())
    held.fault = lambda ids: None
    assert stats.memory_halvings > 0
    assert stats.bisections == 0
    for i, one in enumerate(found):
        assert_agree(one, rm.score([PROMPTS[i]] * 4, responses(i)))


def test_one_row_that_never_fits_fails_alone(held):
    rm = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama")).fit(tiny_pairs(), rank=4)

    def small_memory(ids):
        if ids.shape[1] > 30:
            raise torch.OutOfMemoryError("CUDA out of memory")

    async def main():
        async with AsyncScorer(rm) as scorer:
            asked = [scorer.rewards(p, [words(40 if i == 2 else 3, i)]) for i, p in enumerate(PROMPTS[:5])]
            return await asyncio.gather(*asked, return_exceptions=True)

    held.fault = small_memory
    with pytest.warns(UserWarning, match="did not fit in memory"):
        found = run(main())
    assert [type(one) for one in found] == [torch.Tensor] * 2 + [torch.OutOfMemoryError] + [torch.Tensor] * 2


def test_a_cancelled_request_leaves_the_queue_with_its_tokens(rm, held):
    async def main():
        async with AsyncScorer(rm) as scorer:
            held.hold()
            first = asyncio.create_task(scorer.score(PROMPTS[0], responses(0)))
            await batch_came(held)
            others = [asyncio.create_task(scorer.score(p, responses(i))) for i, p in enumerate(PROMPTS)]
            await until(lambda: scorer.stats().queued_requests == 12)
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
        async with AsyncScorer(rm, max_wait_ms=50) as scorer:
            held.hold()
            both = [asyncio.create_task(scorer.score(p, responses(0))) for p in PROMPTS[:2]]
            await batch_came(held)
            both[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await both[0]
            held.let_go()
            assert_agree(await both[1], rm.score([PROMPTS[1]] * 4, responses(0)))
            assert scorer.stats().cancelled == 1
            assert_agree(await scorer.rewards(PROMPTS[2], responses(2)), rm.rewards([PROMPTS[2]] * 4, responses(2)))

    run(main())


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
            queued = [asyncio.create_task(scorer.rewards(PROMPTS[1], [words(30, 1)])) for _ in range(2)]
            await until(lambda: scorer.stats().queue_tokens > 60)
            with pytest.raises(
                QueueFull, match=r"the request has about \d+ tokens, and \d+ of 100 are taken"
            ) as raised:
                await scorer.rewards(PROMPTS[2], [words(40, 2)], wait=False)
            assert raised.value.retry_after > 0
            waiting = [asyncio.create_task(scorer.rewards(p, [words(40, 2)])) for p in PROMPTS[3:6]]
            await asyncio.sleep(0)
            with pytest.raises(QueueFull):  # nobody passes by those that wait for room
                await scorer.rewards(PROMPTS[2], ["a"], wait=False)
            waiting[0].cancel()
            await asyncio.gather(waiting[0], return_exceptions=True)
            stats = scorer.stats()
            assert (stats.queued_requests, stats.refused, stats.cancelled) == (4, 2, 1)
            held.let_go()
            await asyncio.gather(first, *queued, *waiting[1:])
            return scorer.stats()

    stats = run(main())
    assert (stats.queue_tokens, stats.queued_requests) == (0, 0)


def test_a_request_larger_than_the_queue_is_told_the_numbers(rm):
    async def main():
        async with AsyncScorer(rm, max_queue_tokens=100) as scorer:
            with pytest.raises(InputError, match=r"the request has \d{3} tokens, and max_queue_tokens is 100"):
                await scorer.rewards(PROMPTS[0], responses(0, 40))
            assert scorer.stats().queue_tokens == 0
            await scorer.rewards(PROMPTS[0], responses(0), wait=False)

    run(main())


def test_when_to_come_again_follows_from_the_speed(rm, held):
    async def main():
        async with AsyncScorer(rm, max_queue_tokens=64) as scorer:
            await scorer.rewards(PROMPTS[0], responses(0))
            held.hold()
            first = asyncio.create_task(scorer.rewards(PROMPTS[0], [words(30, 1)]))
            await batch_came(held)
            await batch_came(held)
            waiting = asyncio.create_task(scorer.rewards(PROMPTS[0], [words(50, 1)]))
            await until(lambda: scorer.stats().queue_tokens > 50)
            with pytest.raises(QueueFull) as raised:
                await scorer.rewards(PROMPTS[0], [words(50, 1)], wait=False)
            seconds = scorer.stats().seconds
            held.let_go()
            await asyncio.gather(first, waiting)
            return raised.value.retry_after, seconds

    retry_after, seconds = run(main())
    tokens = sum(len(rm.tokenize([PROMPTS[0]], [r])[0].input_ids) for r in responses(0))
    asked = sum(len(rm.tokenize([PROMPTS[0]], [words(n, 1)])[0].input_ids) for n in (30, 50))
    assert retry_after == pytest.approx(asked * seconds / tokens)


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
        await until(lambda: scorer.stats().queued_requests == 12)
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


@pytest.mark.parametrize("end", ["drain", "close"])
def test_an_engine_that_was_never_used_ends(rm, end):
    async def main():
        scorer = AsyncScorer(rm)
        await getattr(scorer, end)()
        await getattr(scorer, end)()
        with pytest.raises(EngineClosed):
            await scorer.rewards(PROMPTS[0], responses(0))

    run(main())


class Killed(BaseException):
    pass


@pytest.mark.parametrize("dies", ["model", "tokens"])
def test_a_thread_that_dies_leaves_nobody_waiting(rm, held, monkeypatch, dies):
    def killed(*args, **options):
        raise Killed("gone")

    async def main():
        scorer = AsyncScorer(rm)
        held.hold()
        asked = [asyncio.create_task(scorer.score(PROMPTS[0], responses(0)))]
        await batch_came(held)
        asked += [asyncio.create_task(scorer.score(p, responses(0))) for p in PROMPTS]
        await until(lambda: scorer.stats().queued_requests == 12)
        if dies == "model":
            held.fault = killed
        else:
            monkeypatch.setattr(rm.encoder, "encode", killed)
            asked.append(asyncio.create_task(scorer.score(PROMPTS[0], responses(0))))
            await asyncio.gather(*asked[1:], return_exceptions=True)  # while the model is still held
        held.let_go()
        found = await asyncio.gather(*asked, return_exceptions=True)
        with pytest.raises(EngineClosed):
            await scorer.score(PROMPTS[0], responses(0))
        await scorer.drain()
        await scorer.close()
        return found

    for one in run(main()):
        assert isinstance(one, EngineClosed)
        assert "has failed: Killed('gone')" in str(one)
        assert isinstance(one.__cause__, Killed)


def test_a_loop_that_is_closed_while_its_request_runs(rm, held):
    scorer = AsyncScorer(rm)
    held.hold()
    loop = asyncio.new_event_loop()
    task = loop.create_task(scorer.score(PROMPTS[0], responses(0)))
    loop.run_until_complete(asyncio.sleep(0))
    held.wait_for_batch()
    loop.close()

    async def main():
        asked = asyncio.create_task(scorer.score(PROMPTS[1], responses(1)))
        await until(lambda: scorer.stats().queued_requests == 1)
        held.let_go()
        found = await asked
        await scorer.drain()
        return found

    assert_agree(run(main()), rm.score([PROMPTS[1]] * 4, responses(1)))
    task._log_destroy_pending = False


def test_an_engine_that_nobody_holds_ends(rm):
    async def main():
        scorer = AsyncScorer(rm)
        await scorer.rewards(PROMPTS[0], responses(0))
        return scorer._worker._threads

    threads = run(main())
    gc.collect()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


DROPPED = """
import asyncio, sys
sys.path[:0] = ["tests"]
from tiny import tiny_adapter, tiny_tokenizer, words
from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.serve.engine import AsyncScorer

scorer = AsyncScorer(BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama")))
loop = asyncio.new_event_loop()
loop.run_until_complete(scorer.rewards("a", ["about"]))
tasks = [loop.create_task(scorer.rewards(words(30, i), [words(20, i)] * 3)) for i in range(300)]
loop.run_until_complete(asyncio.sleep(0))
print("last line")
"""


def test_the_interpreter_exits_while_requests_wait():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DROPPED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "last line\n", done.stderr
    assert done.returncode == 0, done.stderr


def test_a_forked_child_is_refused_and_does_not_wait(rm):
    import os

    async def main():
        scorer = AsyncScorer(rm)
        await scorer.rewards(PROMPTS[0], responses(0))
        child = os.fork()
        if child == 0:
            try:
                scorer._worker.submit(None, True)
            except EngineClosed:
                os._exit(7)
            finally:
                os._exit(1)
        code = await asyncio.to_thread(lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        await scorer.drain()
        return code

    assert run(main()) == 7


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (lambda s: s.rewards(3, ["a"]), "prompt must be a string or a list of messages"),
        (lambda s: s.rewards("a", "about"), "responses must be a list, not str"),
        (lambda s: s.rewards("a", []), "there is nothing to score"),
        (lambda s: s.rewards("a", ["a", None]), r"responses\[1\] must be a string"),
        (lambda s: s.score("a", ["a", "b\0"]), r"responses\[1\] contains a NUL character"),
        (lambda s: s.score("a", ["a", "\ud800"]), r"responses\[1\] contains a lone surrogate"),
        (lambda s: s.score("a", ["a"], relative_to="mean"), "relative_to must be 'prompt'"),
        (lambda s: s.score("a", ["a"], relative_to=["b", "c"]), "there are 1 prompts but 2 references"),
        (lambda s: s.best_of_n("a", []), "the request: responses is empty"),
        (lambda s: s.best_of_n("a", ["a"], "nothing"), "nothing"),
        (lambda s: s.best_of_n("a", ["a"], k="tuned"), "call tune_penalty first"),
        (lambda s: s.best_of_n("a", ["a"], "mbr"), "needs similarities, which the request does not have"),
        (lambda s: s.covariance("a", {"a": 1}), "the request: responses must be a list"),
        (lambda s: s.score_text("about"), "texts must be a list, not str"),
        (lambda s: s.score_text([]), "there is nothing to score"),
        (lambda s: s.score_text(["a", 3]), "text 2 must be a string, not int"),
        (lambda s: s.score_text(["a", ""], add_special_tokens=False), "text 2 has no tokens"),
        (lambda s: s.score_text(["\ud800"]), "text 1 contains a lone surrogate"),
    ],
)
def test_what_cannot_be_served_is_named(rm, asked, told):
    async def main():
        async with AsyncScorer(rm) as scorer:
            with pytest.raises(InputError, match=told):
                await asked(scorer)
            assert scorer.stats().queue_tokens == 0

    run(main())


class Unhashable(Rule):
    __hash__ = None

    def scores(self, known):
        return -known.mean


def test_a_rule_of_ones_own_is_applied(rm):
    rule = Unhashable()

    async def main():
        async with AsyncScorer(rm) as scorer:
            return await asyncio.gather(*(scorer.best_of_n(p, responses(i), rule) for i, p in enumerate(PROMPTS[:3])))

    for i, found in enumerate(run(main())):
        assert_agree(found, rm.best_of_n(PROMPTS[i], responses(i), rule))


@pytest.mark.parametrize(
    "options", [{"max_batch_tokens": 0}, {"max_wait_ms": -1}, {"max_wait_ms": float("nan")}, {"max_queue_tokens": 0}]
)
def test_limits_that_are_none(rm, options):
    with pytest.raises(InputError, match=next(iter(options))):
        AsyncScorer(rm, **options)
