"""Batches that fail, memory that runs out, threads that die, interpreters that exit."""

import asyncio
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from serving import POISON, PROMPTS, SECONDS, assert_agree, batch_came, fitted, queued, responses, run
from tiny import words

from bayesrm_fast import InputError
from bayesrm_fast.serve.engine import AsyncScorer, EngineClosed

ROOT = Path(__file__).resolve().parents[2]


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
            await queued(scorer, 9)
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
            await queued(scorer, 12)
            held.let_go()
            await first
            return await asyncio.gather(*asked, return_exceptions=True)

    assert [isinstance(one, InputError) for one in run(main())] == [bool(i % 3) for i in range(12)]


def test_out_of_memory_halves_the_batch_and_everybody_gets_numbers(held):
    rm = fitted()

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
    rm = fitted()

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
        await queued(scorer, 12)
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
        await queued(scorer, 1)
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
