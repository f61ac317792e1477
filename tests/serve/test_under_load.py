"""An engine while much happens at once: cancellations, two adapters on one base, posteriors that are replaced."""

import asyncio
import gc
import random
import threading

import pytest
import torch
from serving import PROMPTS, SECONDS, assert_agree, batch_came, fitted, responses, run, text
from tiny import tiny_pairs

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model.lora import active
from bayesrm_fast.serve.engine import AsyncScorer
from bayesrm_fast.serve.requests import Request

ASKED = [
    (lambda s, p, r: s.rewards(p, r), lambda rm, p, r: rm.rewards([p] * len(r), r)),
    (lambda s, p, r: s.score(p, r), lambda rm, p, r: rm.score([p] * len(r), r)),
    (
        lambda s, p, r: s.score(p, r, relative_to="prompt"),
        lambda rm, p, r: rm.score([p] * len(r), r, relative_to="prompt"),
    ),
    (lambda s, p, r: s.best_of_n(p, r, "std", 0.7), lambda rm, p, r: rm.best_of_n(p, r, "std", 0.7)),
    (lambda s, p, r: s.covariance(p, r), lambda rm, p, r: rm.covariance(p, r)),
]


def requests_there():
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is Request]


@pytest.mark.parametrize("seed", range(2))
def test_a_storm_of_cancellations_hurts_nobody_who_waits(rm, seed):
    lot = random.Random(seed)
    earlier = requests_there()  # of other tests: held, so that none of them goes meanwhile

    async def main():
        scorer = AsyncScorer(rm, max_batch_tokens=300, max_queue_tokens=2000)
        tasks = []
        for i in range(200):
            asked, _ = ASKED[i % len(ASKED)]
            tasks.append(asyncio.create_task(asked(scorer, PROMPTS[i % 12], responses(i % 12))))
            if lot.random() < 0.7:
                asyncio.get_running_loop().call_later(lot.uniform(0, 0.5), tasks[-1].cancel)
            await asyncio.sleep(lot.choice((0, 0, 0, 0.002)))
        found = await asyncio.gather(*tasks, return_exceptions=True)
        stats = scorer.stats()
        assert (stats.queue_tokens, stats.queued_requests, stats.bisections) == (0, 0, 0)
        assert_agree(await scorer.score(PROMPTS[0], responses(0)), rm.score([PROMPTS[0]] * 4, responses(0)))
        await scorer.drain()
        scorer._worker.join(SECONDS)  # its threads hold what they were last at
        return found, stats

    found, stats = run(main())
    assert len(requests_there()) == len(earlier)
    gone = [isinstance(one, asyncio.CancelledError) for one in found]
    assert 20 < sum(gone) < 180
    assert 0 < stats.cancelled <= sum(gone)
    expected = {}
    for i, one in enumerate(found):
        if not gone[i]:
            kind, prompt = i % len(ASKED), i % 12
            if (kind, prompt) not in expected:
                expected[kind, prompt] = ASKED[kind][1](rm, PROMPTS[prompt], responses(prompt))
            assert_agree(one, expected[kind, prompt])


@pytest.fixture(scope="module")
def adapters(model_folder, tmp_path_factory):
    """Two on one base model, of which the second has other weights."""
    other = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    with torch.no_grad():
        for name, weight in other.model.named_parameters():
            if "lora_B" in name:
                weight.mul_(-2)
    folder = tmp_path_factory.mktemp("other") / "model"
    other.fit(tiny_pairs(), rank=3).save_pretrained(folder)
    first = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    return first, first.with_adapter(folder, "second")


def test_no_answer_is_by_another_adapters_weights(adapters):
    async def main():
        async with AsyncScorer(adapters[0], max_wait_ms=0) as one, AsyncScorer(adapters[1], max_wait_ms=0) as other:
            tasks = []
            for i in range(60):
                asked, _ = ASKED[i % len(ASKED)]
                for scorer in (one, other):
                    tasks.append(asyncio.create_task(asked(scorer, PROMPTS[i % 12], responses(i % 12))))
                await asyncio.sleep(0.001)
            return await asyncio.gather(*tasks)

    found = run(main())
    expected = []
    for rm in adapters:
        with active(rm.model, rm.adapter):
            expected.append([ASKED[i % len(ASKED)][1](rm, PROMPTS[i % 12], responses(i % 12)) for i in range(60)])
    assert (expected[0][1].mean - expected[1][1].mean).abs().min() > 0.01
    for i, one in enumerate(found):
        assert_agree(one, expected[i % 2][i // 2])


ROWS = [text(3 + i % 9, i) for i in range(30)]


def another_posterior(rm):
    rm.posterior = rm.fitted.to("cpu")
    rm.fitted.prior_precision *= 20


def another_precision(rm):
    rm.fitted.prior_precision *= 20


@pytest.mark.parametrize("change", [another_posterior, another_precision])
@pytest.mark.parametrize(("tokens", "batch"), [(None, 1), (60, 1), (60, 3)])
def test_an_answer_is_of_the_posterior_that_there_is_at_its_end(held, change, tokens, batch):
    """In one batch, or in several, of which some ran under the one before."""
    rm = fitted()
    before = rm.score([PROMPTS[0]] * len(ROWS), ROWS)

    async def main():
        async with AsyncScorer(rm, max_batch_tokens=tokens, max_wait_ms=0) as scorer:
            held.hold()
            asked = asyncio.create_task(scorer.score(PROMPTS[0], ROWS))
            for _ in range(batch - 1):
                await batch_came(held)
                held.let_one_go()
            await batch_came(held)
            change(rm)
            held.let_go()
            found = await asked
            assert scorer.stats().queue_tokens == 0
            return found

    held.forget()
    found = run(main())
    after = rm.score([PROMPTS[0]] * len(ROWS), ROWS)
    assert (before.variance / after.variance).min() > 2
    assert_agree(found, after)


def test_a_request_whose_posterior_is_taken_away_says_so(held):
    rm = fitted()
    held.forget()

    async def main():
        async with AsyncScorer(rm, max_wait_ms=0) as scorer:
            held.hold()
            asked = asyncio.create_task(scorer.score(PROMPTS[0], ROWS))
            await batch_came(held)
            rm.posterior = None
            held.let_go()
            with pytest.raises(InputError, match="there is no posterior"):
                await asked
            return await scorer.rewards(PROMPTS[0], ROWS)

    assert_agree(run(main()), rm.rewards([PROMPTS[0]] * len(ROWS), ROWS))


def test_a_fit_waits_for_the_batch_that_runs_and_every_answer_is_of_one_posterior():
    rm = fitted()

    def expected():
        return [rm.score([prompt] * 4, responses(i)) for i, prompt in enumerate(PROMPTS)]

    before, found, is_over = expected(), [], threading.Event()

    async def main():
        async with AsyncScorer(rm, max_batch_tokens=80, max_wait_ms=0) as scorer:
            fitting = threading.Thread(target=fit)
            asked = [asyncio.create_task(scorer.score(p, responses(i))) for i, p in enumerate(PROMPTS)]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            fitting.start()
            while not is_over.is_set():
                asked += [asyncio.create_task(scorer.score(p, responses(i))) for i, p in enumerate(PROMPTS)]
                await asyncio.wait(asked)
            asked += [asyncio.create_task(scorer.score(p, responses(i))) for i, p in enumerate(PROMPTS)]
            found.extend(await asyncio.gather(*asked))
            fitting.join(SECONDS)

    def fit():
        try:
            rm.fit(tiny_pairs(12, seed=5), structure="kfac", rank=None, prior_precision=0.1)
        finally:
            is_over.set()

    run(main())
    after = expected()
    assert (before[0].variance / after[0].variance - 1).abs().min() > 0.1
    is_after = []
    for i, one in enumerate(found):
        closest = [abs(float(of[i % 12].variance[0] / one.variance[0]) - 1) for of in (before, after)]
        is_after.append(closest[1] < closest[0])
        assert_agree(one, (after if is_after[-1] else before)[i % 12])
    assert is_after[-12:] == [True] * 12
    assert not all(is_after)
