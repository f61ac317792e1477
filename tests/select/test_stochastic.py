"""Rules that draw: their probabilities are those of the pools' formulas, by the scores of their reward."""

import dataclasses

import pytest
import torch
from rule_cases import known_candidates

from bayesrm_fast import InputError
from bayesrm_fast.score.joint import DRAWS
from bayesrm_fast.select.pessimism import pessimism
from bayesrm_fast.select.pools import best_of_poisson, best_of_subset, soft_best_of_n, top_share
from bayesrm_fast.select.rules import MeanReward, Need, PenalisedReward, ThompsonSampling
from bayesrm_fast.select.stochastic import (
    BestOfPoisson,
    BestOfSubset,
    ExpectedPessimism,
    JointSoftBestOfN,
    Pessimism,
    SoftBestOfN,
    TopShare,
)

KNOWN = known_candidates(9)
CASES = [
    (SoftBestOfN, soft_best_of_n, 0.7),
    (BestOfSubset, best_of_subset, 4),
    (BestOfPoisson, best_of_poisson, 3.0),
    (TopShare, top_share, 3.0),
    (Pessimism, pessimism, 0.4),
]


@pytest.mark.parametrize(("rule", "formula", "value"), CASES)
@pytest.mark.parametrize("k", [0.0, 2.0])
def test_probabilities_are_the_formulas_of_the_rewards_scores(rule, formula, value, k):
    scores = KNOWN.mean - k * KNOWN.variance.sqrt()
    assert torch.equal(rule(value, reward=PenalisedReward("std", k)).scores(KNOWN), formula(scores, value))


@pytest.mark.parametrize(("rule", "formula", "value"), CASES)
def test_needs_are_the_rewards(rule, formula, value):
    assert rule(value).needs == {Need.VARIANCE}
    assert rule(value, reward=MeanReward()).needs == set()


def test_a_subset_of_more_than_there_are_is_all():
    assert torch.equal(BestOfSubset(50, reward=MeanReward()).scores(KNOWN), best_of_subset(KNOWN.mean, 9))


def test_expected_pessimism_reads_the_stds():
    expected = pessimism(KNOWN.mean, 0.4, KNOWN.variance.sqrt())
    assert torch.equal(ExpectedPessimism(0.4).scores(KNOWN), expected)
    certain = dataclasses.replace(KNOWN, variance=torch.zeros(9, dtype=torch.float64))
    plain = Pessimism(0.4, reward=MeanReward()).scores(KNOWN)
    torch.testing.assert_close(ExpectedPessimism(0.4).scores(certain), plain)


def test_joint_soft_goes_from_thompsons_probabilities_to_the_uniform():
    cold = JointSoftBestOfN(1e-9, draws=DRAWS).scores(KNOWN)
    torch.testing.assert_close(cold, ThompsonSampling(draws=DRAWS).scores(KNOWN), rtol=0, atol=5 * 0.5 / DRAWS**0.5)
    torch.testing.assert_close(JointSoftBestOfN(1e9).scores(KNOWN), torch.full_like(cold, 1 / 9), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftBestOfN(0.0), "temperature must be a finite number above 0"),
        (lambda: SoftBestOfN(reward="std"), "reward must be a rule"),
        (lambda: SoftBestOfN(reward=ThompsonSampling()), "ThompsonSampling, which draws"),
        (lambda: SoftBestOfN(seed=-1), "seed must be a whole number"),
        (lambda: BestOfSubset(0), "n must be"),
        (lambda: BestOfPoisson(float("inf")), "theta must be"),
        (lambda: TopShare(0.9), "m must be"),
        (lambda: Pessimism(0), "beta must be"),
        (lambda: ExpectedPessimism(-1), "beta must be"),
        (lambda: JointSoftBestOfN(draws=0), "draws must be"),
    ],
)
def test_parameters_that_are_none_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
