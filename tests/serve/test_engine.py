"""An engine in event loops and threads."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from serving import PROMPTS, SECONDS, HeldModel, assert_agree, batch_came, queued, responses, run
from tiny import tiny_adapter, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.select.rules import PenalisedReward, Rule
from bayesrm_fast.serve.engine import AsyncScorer, EngineClosed


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
            await queued(scorer, len(PROMPTS))
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
            await queued(scorer, 8)
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
            first = asyncio.create_task(scorer.rewards(PROMPTS[0], responses(0, 1)))
            await batch_came(held)
            rest = [asyncio.create_task(scorer.rewards(prompt, [answer])) for answer in answers]
            await queued(scorer, len(answers))
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


@pytest.mark.parametrize("end", ["drain", "close"])
def test_an_engine_that_was_never_used_ends(rm, end):
    async def main():
        scorer = AsyncScorer(rm)
        await getattr(scorer, end)()
        await getattr(scorer, end)()
        with pytest.raises(EngineClosed):
            await scorer.rewards(PROMPTS[0], responses(0))

    run(main())


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
