"""Rules served: what they need is there, or is refused before the model runs."""

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.select.rules import KnownCandidates, Need, Rule, WorstCase, first_best

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


def test_a_rule_of_the_joint_posterior_gets_it(rm):
    for one, best in zip(CANDIDATES, rm.best_of_each(CANDIDATES, LeastRegret()), strict=True):
        joint = rm.covariance(one["prompt"], one["responses"])
        assert best.index == int(joint.expected_regret(draws=4096).argmin())
        torch.testing.assert_close(best.variance, joint.covariance.diagonal(), rtol=1e-4, atol=0)
        assert best.variances_computed == len(one["responses"])


@pytest.mark.parametrize("exhaustive", [False, True])
def test_what_comes_from_outside_comes_with_the_candidates(rm, exhaustive):
    for one, best in zip(CANDIDATES, rm.best_of_each(CANDIDATES, Regularised(), exhaustive=exhaustive), strict=True):
        scores = best.mean + torch.tensor(one["log_probabilities"])
        assert best.index == int(scores.argmax())
        torch.testing.assert_close(best.scores, scores)
        # The winner's variance is always there: a choice is told with its uncertainty.
        assert best.variances_computed == (len(one["responses"]) if exhaustive else 1)
        expected = rm.score([one["prompt"]], [best.response]).variance
        torch.testing.assert_close(best.variance[best.index], expected[0], rtol=1e-4, atol=0)


def test_similarities_are_those_of_the_row(rm):
    similarities = torch.eye(3)
    similarities[1] = 1.0
    row = {"prompt": "a", "responses": ["able", "about", "above"], "similarities": similarities.tolist()}
    assert rm.best_of_each([row], Typical())[0].index == 1


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Typical(), r"Typical needs similarities, which candidates, row 1 does not have"),
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


def test_a_rule_is_a_function_of_what_is_known():
    known = KnownCandidates(torch.tensor([0.0, 1.0]), log_probabilities=torch.tensor([5.0, 0.0]))
    assert first_best(Regularised().scores(known)) == 0
