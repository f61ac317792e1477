"""The benchmark's estimators against brute force."""

import itertools
import math

import numpy as np
import pytest

from benchmarks.estimators import auroc, best_of_n_kl, calibration, expected_best_of_n


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


def test_calibration_of_known_probabilities():
    found = calibration(np.array([0.9] * 9 + [0.1]))
    assert found["accuracy"] == pytest.approx(0.9)
    assert found["ece"] == pytest.approx(0.0, abs=1e-12)
    assert found["nll"] == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
