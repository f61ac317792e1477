"""Inference-time pessimism, against the optimum that it is derived from, bisection and simulation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.pessimism import RejectionSampler, pessimism, pessimism_beta

SCORES = torch.tensor([0.3, -1.0, 2.0, 0.9, 1.8], dtype=torch.float64)


def bisected(scores, beta):
    low, high = float(scores.min()) - 2 * beta, float(scores.max())
    for _ in range(200):
        middle = (low + high) / 2
        too_much = float(((scores - middle).clamp(min=0) / beta).mean()) > 1
        low, high = (middle, high) if too_much else (low, middle)
    return low


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.floats(-5, 5), min_size=1, max_size=9),
    beta=st.floats(1e-2, 1e2),
)
def test_probabilities_are_those_of_the_normalised_weights(scores, beta):
    scores = torch.tensor(scores, dtype=torch.float64)
    weights = ((scores - bisected(scores, beta)) / beta).clamp(min=0)
    assert float(weights.mean()) == pytest.approx(1.0, rel=1e-9)
    torch.testing.assert_close(pessimism(scores, beta), weights / len(scores), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.5, 3.0])
def test_it_is_the_best_policy_of_its_objective(beta):
    """E_p[r] − (β/2) E_p[p / base] over distributions on the pool."""

    def objective(policy):
        return float(policy @ SCORES - beta / 2 * len(SCORES) * policy @ policy)

    best = pessimism(SCORES, beta)
    others = -torch.rand(2000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log()
    others /= others.sum(1, keepdim=True)
    near = 0.99 * best + 0.01 * others
    assert all(objective(other) <= objective(best) + 1e-12 for other in [*others, *near])


def test_a_small_beta_is_best_of_n_and_a_large_one_uniform():
    scores = torch.tensor([1e300, 2.0, 1e300, -1e300], dtype=torch.float64)
    assert pessimism(scores, 5e-324).tolist() == [0.5, 0.0, 0.5, 0.0]
    torch.testing.assert_close(pessimism(SCORES, 1e300), torch.full((5,), 0.2, dtype=torch.float64))


@pytest.mark.parametrize("beta", [1e-6, 0.3, 2.0])
def test_stds_are_continuous_at_zero(beta):
    plain = pessimism(SCORES, beta)
    torch.testing.assert_close(pessimism(SCORES, beta, torch.zeros(5)), plain)
    torch.testing.assert_close(pessimism(SCORES, beta, torch.full((5,), 1e-14 * beta)), plain)


def test_stds_are_the_mean_over_the_posterior():
    stds, beta = torch.tensor([0.5, 0.1, 0.0, 1.0, 0.3], dtype=torch.float64), 0.4
    generator = torch.Generator().manual_seed(0)
    draws = SCORES + stds * torch.randn(200_000, 5, generator=generator, dtype=torch.float64)
    low, high = -3.0, 3.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float((draws - middle).clamp(min=0).mean()) > beta else (low, middle)
    weights = (draws - low).clamp(min=0) / beta
    error = weights.std(0) / len(draws) ** 0.5
    # λ is from the same draws: its error is a mean of the weights' errors.
    difference = (weights.mean(0) / 5 - pessimism(SCORES, beta, stds)).abs()
    assert bool((difference < 4 * (error + error.mean()) / 5).all())


def test_an_uncertain_candidate_is_weighed_by_what_it_may_be():
    probabilities = pessimism(torch.tensor([1.0, 0.0, 0.0]), 0.1, torch.tensor([0.0, 0.0, 1.0]))
    assert probabilities[1] < probabilities[2]


def test_beta_makes_the_bound_on_the_regret_least():
    variance = torch.tensor([0.5, 1.5, 4.0])
    beta = pessimism_beta(variance, 3.0)
    assert beta == pytest.approx(math.sqrt(2.0 / 3.0))

    def bound(beta):
        return math.sqrt(3 * 2.0) + beta * 3 / 2 + 2.0 / (2 * beta)

    assert bound(beta) == pytest.approx(2 * math.sqrt(3 * 2.0))
    assert bound(beta) < min(bound(0.99 * beta), bound(1.01 * beta))


@pytest.mark.parametrize("share", [2, 4, 8])
def test_the_regret_is_within_its_bound(share):
    """Gold = reward less an error of known mean square, put where it hurts most: on what pessimism picks."""
    generator = torch.Generator().manual_seed(share)
    for _ in range(50):
        reward = torch.randn(64, generator=generator, dtype=torch.float64)
        beta = pessimism_beta(torch.full((64,), 0.25), share)
        chosen = pessimism(reward, beta)
        error = chosen * (0.25 * 64 / (chosen @ chosen)).sqrt()
        gold = reward - error
        top = gold.topk(64 // share).values.mean()
        assert float(top - chosen @ gold) <= 2 * math.sqrt(share * 0.25) + 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor([1.0, math.nan]), 1.0), "variance must be finite numbers; at position 1 is nan"),
        ((torch.zeros(2), 2.0), "the mean variance must be a finite number above 0"),
        ((torch.ones(2), 0.5), "coverage must be a finite number of at least 1"),
    ],
)
def test_a_beta_needs_an_error_and_a_coverage(arguments, message):
    with pytest.raises(InputError, match=message):
        pessimism_beta(*arguments)


def test_stds_are_refused_by_their_position():
    with pytest.raises(InputError, match="std must be finite numbers; at position 1 is nan"):
        pessimism(torch.zeros(2), 1.0, torch.tensor([1.0, math.nan]))
    with pytest.raises(InputError, match="for each of 2 candidates, not 3"):
        pessimism(torch.zeros(2), 1.0, torch.ones(3))


def test_fresh_draws_are_accepted_as_the_pool_is_weighed():
    """Draws from the pool itself: what is accepted first has the pool's probabilities."""
    sampler, generator = RejectionSampler.of_pool(SCORES, 0.5), torch.Generator().manual_seed(0)
    trials = 20_000
    drawn = torch.randint(5, (trials, 60), generator=generator)
    first = [sampler.first_accepted(SCORES[row], generator) for row in drawn]
    chosen = torch.tensor([int(row[at]) for row, at in zip(drawn, first, strict=True) if at is not None])
    assert len(chosen) > 0.99 * trials
    expected = pessimism(SCORES, 0.5)
    error = (expected * (1 - expected) / len(chosen)).sqrt()
    assert bool(((chosen.bincount(minlength=5) / len(chosen) - expected).abs() <= 4 * error).all())
    waited = torch.tensor([at + 1.0 for at in first if at is not None])
    assert float(waited.mean()) == pytest.approx(sampler.draws_per_acceptance, rel=0.03)


def test_a_sampler_may_reject_all_and_takes_what_is_above_its_ceiling():
    sampler, generator = RejectionSampler.of_pool(SCORES, 0.5), torch.Generator().manual_seed(0)
    assert sampler.first_accepted(torch.full((9,), -5.0), generator) is None
    assert sampler.first_accepted(torch.tensor([-5.0, 9.0]), generator) == 1
    assert RejectionSampler.of_pool(SCORES, 0.5, 4.0).draws_per_acceptance > sampler.draws_per_acceptance
    with pytest.raises(InputError, match="ceiling must be a finite number of at least 2"):
        RejectionSampler.of_pool(SCORES, 0.5, 1.5)
