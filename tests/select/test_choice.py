"""Rules served: what they need is there, or is refused before the model runs."""

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words
from whole_rows import whole_rows

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.score.variances import score_examples
from bayesrm_fast.select import choice
from bayesrm_fast.select.rules import KnownCandidates, MeanReward, Need, PenalisedReward, Rule, WorstCase, first_best
from bayesrm_fast.text.records import Candidates

CANDIDATES = [
    {
        "prompt": words(3, 1),
        "responses": [words(2 + i, 10 + i) for i in range(5)],
        "log_probabilities": [-1, -2, -9, -3, -4],
    },
    {"prompt": words(4, 2), "responses": [words(3 + i, 30 + i) for i in range(2)], "log_probabilities": [-8.5, -1.0]},
]


@pytest.fixture(scope="module")
def rm():
    return BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama")).fit(
        tiny_pairs(), rank=4, prior_precision=1.0
    )


class LeastRegret(Rule):
    needs = frozenset({Need.JOINT})

    def scores(self, known):
        return -known.joint.expected_regret(draws=4096)


class Regularised(Rule):
    needs = frozenset({Need.LOG_PROBABILITIES})

    def scores(self, known):
        return known.mean + known.log_probabilities


class Typical(Rule):
    needs = frozenset({Need.SIMILARITIES})

    def scores(self, known):
        return known.similarities.mean(1)


@pytest.mark.parametrize("relative", [True, False])
def test_a_rule_of_the_joint_posterior_gets_it(rm, relative):
    for one, best in zip(CANDIDATES, rm.best_of_each(CANDIDATES, LeastRegret(), relative=relative), strict=True):
        joint = rm.covariance(one["prompt"], one["responses"])
        joint = joint.relative() if relative else joint
        assert best.index == int(joint.expected_regret(draws=4096).argmin())
        torch.testing.assert_close(best.variance, joint.covariance.diagonal(), rtol=1e-4, atol=0)
        assert best.variances_computed == len(one["responses"])


@pytest.mark.parametrize("exhaustive", [False, True])
def test_what_comes_from_outside_comes_with_the_candidates(rm, exhaustive):
    for one, best in zip(
        CANDIDATES, rm.best_of_each(CANDIDATES, Regularised(), relative=False, exhaustive=exhaustive), strict=True
    ):
        scores = best.mean + torch.tensor(one["log_probabilities"], dtype=torch.float64)
        assert best.index == int(scores.argmax())
        torch.testing.assert_close(best.scores, scores)
        # The winner's variance is always there: a choice is told with its uncertainty.
        assert best.variances_computed == (len(one["responses"]) if exhaustive else 1)
        expected = rm.score([one["prompt"]], [best.response]).variance
        torch.testing.assert_close(best.variance[best.index], expected[0], rtol=1e-4, atol=0)


def test_what_comes_from_outside_is_not_rounded_to_the_models_dtype(rm):
    logarithms = [-1e39, -20000.0002, -20000.0001]
    row = {"prompt": "a", "responses": ["able", "about", "above"], "log_probabilities": logarithms}
    best = rm.best_of_each([row], {"rule": "log_probability"})[0]
    assert (best.index, best.scores.tolist()) == (2, logarithms)


def test_similarities_are_those_of_the_row(rm):
    similarities = torch.eye(3)
    similarities[1] = 1.0
    row = {"prompt": "a", "responses": ["able", "about", "above"], "similarities": similarities.tolist()}
    assert rm.best_of_each([row], Typical())[0].index == 1


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            Typical(),
            r"Typical needs similarities, which candidates, row 1 does not have: give it as a column, or",
        ),
        (WorstCase(), "ensemble"),
        ("uncertainty", "ensemble"),
    ],
)
def test_what_a_rule_lacks_is_told_before_the_model_runs(rm, rule, message, monkeypatch):
    monkeypatch.setattr(type(rm.encoder), "encode", None)
    with pytest.raises(InputError, match=message):
        rm.best_of_each(CANDIDATES, rule)


@pytest.mark.parametrize(
    "more",
    [
        {"log_probabilities": [-1.0]},
        {"log_probabilities": [-1.0, float("nan")]},
        {"log_probabilities": "ab"},
        {"log_probabilities": [True, False]},
        {"similarities": [[1.0, 0.5]]},
        {"similarities": [[1.0, 0.5], [0.5]]},
        {"similarities": 3},
    ],
)
def test_numbers_from_outside_that_do_not_fit_are_named(rm, more):
    with pytest.raises(InputError, match=rf"candidates, row 1: {next(iter(more))}"):
        rm.best_of_each([{"prompt": "a", "responses": ["able", "about"], **more}])


def test_a_rule_that_gives_one_number_for_all_is_refused(rm):
    class Flat(Rule):
        def scores(self, known):
            return known.mean.mean()

    with pytest.raises(InputError, match="Flat gave scores"):
        rm.best_of_each(CANDIDATES, Flat())


@pytest.mark.parametrize("rule", ["mean", MeanReward()])
@pytest.mark.parametrize("exhaustive", [False, True])
def test_the_mean_needs_no_variance_and_the_winner_is_told_with_its_own(rm, rule, exhaustive, monkeypatch):
    asked = []
    computed = choice.score_examples
    monkeypatch.setattr(
        choice, "score_examples", lambda passes, rows, *rest: asked.append(len(rows)) or computed(passes, rows, *rest)
    )
    found = rm.best_of_each(CANDIDATES, rule, relative=False, exhaustive=exhaustive)
    # The winners of both prompts together, or all rows.
    assert asked == [7 if exhaustive else 2]
    for one, best in zip(CANDIDATES, found, strict=True):
        count = len(one["responses"])
        scores = rm.score([one["prompt"]] * count, one["responses"])
        assert best.index == int(scores.mean.argmax())
        assert best.response == one["responses"][best.index]
        assert best.scores is best.mean
        assert best.variances_computed == (count if exhaustive else 1)
        known = ~best.variance.isnan()
        assert int(known.sum()) == best.variances_computed
        assert known[best.index]
        torch.testing.assert_close(best.variance[known], scores.variance[known], rtol=1e-4, atol=0)


@pytest.mark.parametrize("penalty", ["std", "variance"])
def test_lazily_the_winner_is_the_exhaustive_one_and_no_more_is_told_than_was_computed(rm, penalty):
    sets = [{"prompt": words(3, n), "responses": [words(1 + i, 9 * n + i) for i in range(9)]} for n in range(4)]
    rule = PenalisedReward(penalty, 2.0)
    for lazy, full in zip(
        rm.best_of_each(sets, rule, relative=False),
        rm.best_of_each(sets, rule, relative=False, exhaustive=True),
        strict=True,
    ):
        assert lazy.index == full.index
        assert lazy.response == full.response
        assert full.variances_computed == 9
        known = ~lazy.variance.isnan()
        assert lazy.variances_computed == int(known.sum()) >= 1
        assert torch.equal(lazy.scores.isnan(), ~known)
        torch.testing.assert_close(lazy.variance[known], full.variance[known], rtol=1e-4, atol=0)
        torch.testing.assert_close(lazy.mean, full.mean, rtol=1e-4, atol=1e-5)


class Doubtful(Rule):
    """Needs variances, and says nothing of what a score cannot be above."""

    needs = frozenset({Need.VARIANCE})

    def scores(self, known):
        return known.variance


def test_equal_candidates_are_computed_once_and_the_first_of_them_wins(rm, monkeypatch):
    rm.passes().budget.batch_tokens = 16  # so that a wave is one candidate
    asked = []

    def recorded(passes, rows, posterior, *rest):
        asked.extend(tuple(row.input_ids) for row in rows)
        return score_examples(passes, rows, posterior, *rest)

    monkeypatch.setattr(choice, "score_examples", recorded)
    different = [words(3, seed) for seed in range(4)]
    sets = [{"prompt": words(2, 5), "responses": different * 20}, {"prompt": words(3, 6), "responses": ["able"] * 50}]
    found = rm.best_of_each(sets, "std", 3.0, relative=False)
    assert len(asked) == len(set(asked)) <= 5
    for one, best in zip(sets, found, strict=True):
        full = rm.best_of_n(one["prompt"], one["responses"], "std", 3.0, relative=False, exhaustive=True)
        assert best.index == full.index < 4
        known = ~best.variance.isnan()
        torch.testing.assert_close(best.variance[known], full.variance[known], rtol=1e-4, atol=0)
        assert best.variances_computed == int(known.sum()) >= 20


def test_a_rule_without_ceilings_gets_every_variance_and_it_is_said(rm):
    with pytest.warns(UserWarning, match="Doubtful has no ceilings, so every variance is computed"):
        found = rm.best_of_each(CANDIDATES, Doubtful(), relative=False)
    for best in found:
        assert best.variances_computed == len(best.mean)
        assert best.index == int(best.variance.argmax())


def test_progress_counts_the_candidates_whose_means_are_known(rm):
    for rule, relative, exhaustive in (
        ("std", True, False),
        ("std", False, False),
        ("std", False, True),
        ("mean", True, False),
    ):
        told = []
        rm.best_of_each(
            CANDIDATES,
            rule,
            relative=relative,
            exhaustive=exhaustive,
            progress=lambda *at, told=told: told.append(at),
        )
        assert told[-1] == (7, 7)


@pytest.mark.parametrize("penalty", ["std", "variance"])
def test_a_choice_is_of_the_differences_to_the_prompts_mean(rm, penalty):
    for one, best in zip(CANDIDATES, rm.best_of_each(CANDIDATES, penalty, k=0.7), strict=True):
        count = len(one["responses"])
        scores = rm.score([one["prompt"]] * count, one["responses"], relative_to="prompt")
        expected = scores.mean - 0.7 * (scores.std if penalty == "std" else scores.variance)
        assert best.index == int(expected.argmax())
        torch.testing.assert_close(best.scores, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(best.mean + best.baseline, rm.rewards([one["prompt"]] * count, one["responses"]))
        assert best.variances_computed == count


def test_the_mean_alone_takes_no_backward_pass_over_all(rm):
    for best in rm.best_of_each(CANDIDATES, "mean"):
        assert (best.variances_computed, best.baseline) == (1, None)


def test_rows_that_were_cut_are_told(rm):
    short = BayesianRewardModel(rm.model, rm.tokenizer, max_length=8)
    short.posterior = rm.posterior
    best = short.best_of_n("a", ["able", words(9, 1)])
    assert best.truncated.tolist() == [False, True]
    assert best.tokens.tolist() == [row.length for row in short.tokenize(["a"] * 2, ["able", words(9, 1)])]
    assert best.tokens[1] == 8


class Hopeful(Rule):
    """Scores what it does not know as if it were nothing."""

    needs = frozenset({Need.VARIANCE})

    def scores(self, known):
        return known.mean - 0.1 * known.variance.nan_to_num(0)


CANDIDATE_SET = Candidates("a", ["able", "about", "act"])


def test_a_candidate_whose_variance_is_not_known_is_not_chosen_by_a_rule_that_needs_it():
    known = KnownCandidates(torch.tensor([9.0, 1.0, 2.0]), torch.tensor([torch.nan, 0.0, 4.0]))
    best = choice.chosen(PenalisedReward("std", 1.0), CANDIDATE_SET, known, *whole_rows(3))
    assert (best.index, best.response, best.variances_computed) == (1, "about", 2)
    assert choice.chosen(Hopeful(), CANDIDATE_SET, known, *whole_rows(3)).index == 2
    assert choice.chosen(MeanReward(), CANDIDATE_SET, known, *whole_rows(3)).index == 0
    nothing = choice.chosen(MeanReward(), CANDIDATE_SET, KnownCandidates(known.mean), *whole_rows(3))
    assert (nothing.variances_computed, nothing.variance.isnan().all()) == (0, True)


def test_a_rule_is_a_function_of_what_is_known():
    known = KnownCandidates(torch.tensor([0.0, 1.0]), log_probabilities=torch.tensor([5.0, 0.0]))
    assert first_best(Regularised().scores(known)) == 0


def test_scores_that_are_all_nan_choose_nothing(rm):
    class Lost(Rule):
        def scores(self, known):
            return known.mean * torch.nan

    with pytest.raises(InputError, match=r"Lost gave no candidate of candidates, row 1 a score"):
        rm.best_of_each(CANDIDATES, Lost())


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(
    ("rule", "best"),
    [
        ({"rule": "std", "k": 1e300}, "-inf|nan"),
        ({"rule": "regularised", "proximity": {"rule": "mbr"}, "reward": {"rule": "mean"}}, "inf"),
    ],
)
def test_scores_that_overflow_choose_nothing(rm, rule, best, relative):
    rows = [row | {"similarities": [[1e308] * len(row["responses"])] * len(row["responses"])} for row in CANDIDATES]
    with pytest.raises(InputError, match=rf"gave no candidate of candidates, row 1 a score: the best is ({best})"):
        rm.best_of_each(rows, rule, relative=relative)


def test_scores_that_are_no_tensor_are_refused(rm):
    class Listed(Rule):
        def scores(self, known):
            return known.mean.tolist()

    with pytest.raises(InputError, match="Listed gave list"):
        rm.best_of_each(CANDIDATES, Listed())


def test_a_rule_with_ceilings_that_needs_more_than_variances_gets_all_of_it(rm):
    class Both(Rule):
        needs = frozenset({Need.VARIANCE, Need.LOG_PROBABILITIES})

        def scores(self, known):
            return known.mean - known.variance.sqrt() + known.log_probabilities

        def ceilings(self, mean, floor):
            return mean

    with pytest.warns(UserWarning, match="every variance is computed"):
        found = rm.best_of_each(CANDIDATES, Both(), relative=False)
    for one, best in zip(CANDIDATES, found, strict=True):
        expected = best.mean - best.variance.sqrt() + torch.tensor(one["log_probabilities"])
        assert best.index == int(expected.argmax())
