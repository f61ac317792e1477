"""Rewards with how near a candidate is to what the policy usually says."""

import pytest
import torch
from rule_cases import known_candidates

from bayesrm_fast import InputError
from bayesrm_fast.select.regularised import LogProbability, MeanSimilarity, Regularised, standardised
from bayesrm_fast.select.rules import MeanReward, Need, ThompsonSampling

KNOWN = known_candidates(7)


def test_rbon_is_the_reward_and_a_share_of_the_proximity():
    by_policy = Regularised(LogProbability(), 0.3, MeanReward()).scores(KNOWN)
    torch.testing.assert_close(by_policy, KNOWN.mean + 0.3 * KNOWN.log_probabilities)
    by_similarity = Regularised(MeanSimilarity(), 0.3).scores(KNOWN)
    expected = KNOWN.mean - KNOWN.variance.sqrt() + 0.3 * KNOWN.similarities.mean(1)
    torch.testing.assert_close(by_similarity, expected)


def test_of_standardised_parts_no_unit_matters():
    rule = Regularised(LogProbability(), 0.5, MeanReward(), standardised=True)
    scores = rule.scores(KNOWN)
    assert float(standardised(KNOWN.mean).std(correction=0)) == pytest.approx(1)
    expected = standardised(KNOWN.mean) + 0.5 * standardised(KNOWN.log_probabilities)
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_values_have_no_spread_to_divide_by(dtype):
    for value in (0.0, 0.1, 1e6, -1e-30):
        assert standardised(torch.full((3,), value, dtype=dtype)).tolist() == [0, 0, 0]


def test_needs_are_those_of_both():
    assert Regularised(LogProbability()).needs == {Need.VARIANCE, Need.LOG_PROBABILITIES}
    assert Regularised(MeanSimilarity(), reward=MeanReward()).needs == {Need.SIMILARITIES}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regularised(beta=-1.0), "beta must be"),
        (lambda: Regularised(beta=float("nan")), "beta must be"),
        (lambda: Regularised(ThompsonSampling()), "proximity must be a rule that scores"),
        (lambda: Regularised(reward=None), "reward must be a rule"),
        (lambda: Regularised(standardised="yes"), "standardised must be true or false"),
    ],
)
def test_parameters_that_are_none_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
