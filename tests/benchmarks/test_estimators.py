"""The benchmark's estimators against brute force."""

import itertools

import numpy as np
import pytest

from benchmarks.estimators import auroc, best_of_n_kl, expected_best_of_n, rank_correlation


@pytest.mark.parametrize("n", [1, 2, 4, 7])
@pytest.mark.parametrize("tied", [False, True])
def test_expected_best_of_n_is_the_mean_over_all_subsets(n, tied):
    generator = np.random.default_rng(0)
    scores, gold = generator.normal(size=7), generator.uniform(size=7)
    if tied:
        scores = scores.round()
    best = [gold[max(subset, key=lambda i: (scores[i], -i))] for subset in itertools.combinations(range(7), n)]
    assert expected_best_of_n(scores, gold, n) == pytest.approx(np.mean(best), rel=1e-12)


def test_kl_is_that_of_the_winners_rank():
    """With distinct scores the winner of n draws from a large pool has the rank distribution n·uⁿ⁻¹."""
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (2, 8, 56):
        density = n * u ** (n - 1)
        assert best_of_n_kl(n) == pytest.approx(float((density * np.log(density)).mean()), rel=1e-4)


def test_auroc_counts_ties_as_half():
    assert auroc([1, 2], [3, 4]) == 1
    assert auroc([1, 2], [1, 2]) == 0.5
    assert auroc([3], [1, 5]) == 0.5


def test_rank_correlation_sees_order_alone():
    values = np.array([0.1, 2.0, 0.5, 9.0])
    assert rank_correlation(values, np.exp(values)) == pytest.approx(1.0)
    assert rank_correlation(values, -values) == pytest.approx(-1.0)
    # Two neighbours swapped among four: 1 − 6 Σd² / (n³ − n) = 1 − 12/60.
    assert rank_correlation(values, np.array([0.5, 2.0, 0.1, 9.0])) == pytest.approx(0.8)
