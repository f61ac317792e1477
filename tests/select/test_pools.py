"""Probabilities of candidates of a pool, against enumeration and simulation."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import RELATIVE

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.pessimism import pessimism
from bayesrm_fast.select.pools import (
    best_of_poisson,
    best_of_subset,
    soft_best_of_draws,
    soft_best_of_n,
    top_share,
    worst_to_best,
)

TOLERANCE = RELATIVE[torch.float64]

POOLS = {
    "soft": lambda scores: soft_best_of_n(scores, 0.7),
    "soft of draws": lambda scores: soft_best_of_draws(torch.stack([scores, 2 * scores, scores**2 - scores]), 0.7),
    "subset": lambda scores: best_of_subset(scores, (len(scores) + 1) // 2),
    "poisson": lambda scores: best_of_poisson(scores, 1.3),
    "top share": lambda scores: top_share(scores, 2.5),
    "pessimism": lambda scores: pessimism(scores, 0.4),
    "pessimism with stds": lambda scores: pessimism(scores, 0.4, torch.full_like(scores, 0.3)),
}
BY_ORDER = ("subset", "poisson", "top share")


@pytest.mark.parametrize("rule", POOLS)
@settings(max_examples=30, deadline=None)
@given(scores=st.lists(st.integers(-50, 50), min_size=1, max_size=12, unique=True), seed=st.integers(0, 2**16))
def test_every_rule_is_a_distribution_that_follows_its_candidates(rule, scores, seed):
    scores = torch.tensor(scores, dtype=torch.float64) / 10
    probabilities = POOLS[rule](scores)
    assert probabilities.dtype == torch.float64
    assert bool((probabilities >= 0).all())
    assert float(probabilities.sum()) == pytest.approx(1.0, rel=1e-12)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(POOLS[rule](scores[order]), probabilities[order], rtol=TOLERANCE, atol=1e-12)
    by_score = probabilities[worst_to_best(scores)]
    if rule != "soft of draws":
        assert bool((by_score.diff() >= -1e-12).all())


@pytest.mark.parametrize("rule", [rule for rule in POOLS if rule != "soft of draws"])
def test_a_constant_added_to_all_changes_nothing(rule):
    scores = torch.tensor([0.3, -1.25, 0.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(POOLS[rule](scores + 1024.0), POOLS[rule](scores), rtol=TOLERANCE, atol=1e-12)


def test_a_constant_of_each_draw_changes_nothing():
    draws = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = draws + torch.arange(5.0, dtype=torch.float64)[:, None]
    torch.testing.assert_close(soft_best_of_draws(shifted, 0.5), soft_best_of_draws(draws, 0.5))


@pytest.mark.parametrize("rule", POOLS)
def test_one_candidate_is_certain(rule):
    assert POOLS[rule](torch.tensor([-3.0])).tolist() == [1.0]


@pytest.mark.parametrize("rule", POOLS)
def test_equals_share_or_the_lower_index_is_above(rule):
    probabilities = POOLS[rule](torch.zeros(4))
    if rule in BY_ORDER:
        assert probabilities.tolist() == sorted(probabilities.tolist(), reverse=True)
        assert probabilities[0] > probabilities[3]
    else:
        torch.testing.assert_close(probabilities, torch.full((4,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("rule", POOLS)
def test_nan_is_refused_by_its_position(rule):
    with pytest.raises(InputError, match="at position 1 is nan"):
        POOLS[rule](torch.tensor([0.0, float("nan"), 1.0]))


@pytest.mark.parametrize("parameter", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "rule", [soft_best_of_n, best_of_poisson, top_share, pessimism, best_of_subset], ids=lambda rule: rule.__name__
)
def test_parameters_out_of_range_are_refused(rule, parameter):
    with pytest.raises(InputError, match="must be a"):
        rule(torch.zeros(3), parameter)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_soft_best_of_n_is_a_ratio_of_exponentials_at_any_scale(scale):
    probabilities = soft_best_of_n(scale * torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64), scale)
    expected = torch.tensor([1.0, math.e, math.e**-2], dtype=torch.float64)
    torch.testing.assert_close(probabilities, expected / expected.sum())


def test_a_small_temperature_is_best_of_n_and_a_large_one_uniform():
    scores = torch.tensor([1e300, 2.0, 1e300, -1e300], dtype=torch.float64)
    assert soft_best_of_n(scores, 5e-324).tolist() == [0.5, 0.0, 0.5, 0.0]
    assert soft_best_of_n(torch.tensor([0.0, 1.0]), 1e18).tolist() == [0.5, 0.5]


def test_soft_best_of_draws_tends_to_the_probability_of_being_best():
    draws = torch.tensor([[0.0, 1.0, 0.5], [2.0, 1.0, 0.0], [0.0, 3.0, 3.0], [0.0, 0.1, 5.0]])
    assert soft_best_of_draws(draws, 1e-9).tolist() == [0.25, 0.375, 0.375]
    with pytest.raises(InputError, match=r"draws must be a tensor \[S, n\]"):
        soft_best_of_draws(torch.zeros(3), 1.0)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_the_best_of_a_subset_is_that_of_all_subsets_ties_and_all(n):
    scores = torch.tensor([0.1, 0.5, 0.5, -2.0, 0.1, 0.4])
    wins = torch.zeros(6, dtype=torch.float64)
    for subset in itertools.combinations(range(6), n):
        wins[min(subset, key=lambda i: (-float(scores[i]), i))] += 1
    torch.testing.assert_close(best_of_subset(scores, n), wins / wins.sum(), rtol=1e-14, atol=0)


@pytest.mark.parametrize(("count", "n"), [(100, 7), (5000, 2500)])
def test_the_best_of_a_subset_of_a_large_pool_keeps_its_digits(count, n):
    probabilities = best_of_subset(torch.arange(count), n)
    for i in (count, count - 1, (count + n) // 2, n):
        exact = math.comb(i - 1, n - 1) / math.comb(count, n)
        assert float(probabilities[i - 1]) == pytest.approx(exact, rel=count * 1e-15)
    assert bool((probabilities[: n - 1] == 0).all())


def test_a_subset_is_no_larger_than_its_pool():
    with pytest.raises(InputError, match="n must be a whole number from 1 to 3, not 4"):
        best_of_subset(torch.zeros(3), 4)


@pytest.mark.parametrize("theta", [0.0, 0.4, 3.0, 40.0])
def test_best_of_poisson_is_the_mixture_over_sizes(theta):
    scores, count = torch.tensor([0.3, 0.1, 0.9, 0.5, 0.7]), 5
    sizes = [math.exp(-theta) * theta**k / math.factorial(k) for k in range(count - 1)]
    sizes.append(1 - sum(sizes))
    expected = sum(size * best_of_subset(scores, n + 1) for n, size in enumerate(sizes))
    torch.testing.assert_close(best_of_poisson(scores, theta), expected, rtol=1e-10, atol=1e-14)


def test_best_of_poisson_is_what_its_draws_choose():
    """Subsets drawn one by one, as the rule says."""
    generator = torch.Generator().manual_seed(0)
    scores, theta, trials = torch.tensor([0.3, 0.1, 0.9, 0.5]), 1.5, 40_000
    sizes = 1 + torch.poisson(torch.full((trials,), theta), generator=generator).long().clamp(max=3)
    shuffled = torch.rand(trials, 4, generator=generator).argsort(1)
    drawn = torch.arange(4) < sizes[:, None]
    best = shuffled.gather(1, torch.where(drawn, scores[shuffled], -1.0).argmax(1, keepdim=True)).flatten()
    frequency = best.bincount(minlength=4) / trials
    probabilities = best_of_poisson(scores, theta)
    error = (probabilities * (1 - probabilities) / trials).sqrt()
    assert bool(((frequency - probabilities).abs() < 4 * error).all())


@pytest.mark.parametrize("theta", [700.0, 1e6, 1e300])
def test_best_of_poisson_of_a_large_mean_takes_the_whole_pool(theta):
    assert best_of_poisson(torch.arange(20), theta).tolist() == pytest.approx([0.0] * 19 + [1.0], abs=1e-12)


@pytest.mark.parametrize(("m", "kept"), [(1, 10), (2, 5), (3, 4), (9.9, 2), (10, 1), (1e9, 1)])
def test_the_top_share_is_uniform_and_the_lower_index_is_in(m, kept):
    probabilities = top_share(torch.zeros(10), m)
    assert probabilities.tolist() == [1 / kept] * kept + [0.0] * (10 - kept)
    assert float(probabilities.max()) <= m / 10 + 1e-15
