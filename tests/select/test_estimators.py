"""What best-of-n is worth, against all subsets and by simulation."""

import itertools
import math

import pytest
import torch

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.estimators import (
    best_of_n_kl,
    bonbon_beta,
    expected_best_of_n,
    mean_and_standard_error,
    sizes_up_to,
)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_the_expectation_is_that_over_all_subsets_ties_and_all(n):
    scores, gold = torch.tensor([0.1, 0.5, 0.5, -2.0, 0.1, 0.4]), torch.tensor([1.0, 0.0, 3.0, 5.0, 2.0, 7.0])
    subsets = list(itertools.combinations(range(6), n))
    best = [min(subset, key=lambda i: (-float(scores[i]), i)) for subset in subsets]
    expected = sum(float(gold[i]) for i in best) / len(subsets)
    assert expected_best_of_n(scores, gold, n) == pytest.approx(expected, rel=1e-12)


def test_sizes_are_powers_of_two_and_the_whole():
    assert sizes_up_to(1) == [1]
    assert sizes_up_to(8) == [1, 2, 4, 8]
    assert sizes_up_to(100) == [1, 2, 4, 8, 16, 32, 64, 100]


def test_the_kl_of_one_draw_is_nothing():
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


def test_kl_is_that_of_the_winners_rank():
    """With distinct scores the winner of n draws from a large pool has the rank distribution n·uⁿ⁻¹."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for n in (2, 8, 56):
        density = n * u ** (n - 1)
        assert best_of_n_kl(n) == pytest.approx(float((density * density.log()).mean()), rel=1e-4)


def test_a_standard_error_needs_two():
    assert mean_and_standard_error([3.0]) == (3.0, math.inf)
    mean, error = mean_and_standard_error([1.0, 2.0, 3.0, 6.0])
    assert (mean, error) == pytest.approx((3.0, (14 / 3) ** 0.5 / 2))


@pytest.mark.parametrize(("n", "beta"), [(2, 1 / 2), (4, 1 / 11), (8, 10 / 363)])
def test_bonbon_beta_is_the_papers(n, beta):
    assert bonbon_beta(n) == pytest.approx(beta, rel=1e-15)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_bonbon_beta_is_the_log_ratio_between_best_and_worst(n):
    """1 / (2β) is the mean of log p(U_best) − log p(U_worst) under best-of-n's density p(u) = n uⁿ⁻¹."""
    draws = torch.rand(200_000, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).log()
    ratios = (n - 1) * (draws.amax(1) - draws.amin(1))
    assert abs(float(ratios.mean()) - 1 / (2 * bonbon_beta(n))) < 4 * float(ratios.std()) / len(ratios) ** 0.5


@pytest.mark.parametrize("n", [1, 0, -2, 2.5, True, float("nan")])
def test_bonbon_needs_two_candidates(n):
    with pytest.raises(InputError, match="whole number of at least 2"):
        bonbon_beta(n)
