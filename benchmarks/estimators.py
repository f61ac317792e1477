"""What a best-of-n benchmark estimates, and how."""

import math
from collections.abc import Sequence

import numpy as np


def expected_best_of_n(scores: np.ndarray, gold: np.ndarray, n: int) -> float:
    """Expected gold of the highest-scoring of n candidates drawn without replacement.

    Exact over all subsets: the response of rank i among N (1 the lowest) is the best of a random n-subset with
    probability C(i − 1, n − 1) / C(N, n). Of equal scores the earlier candidate wins.

    Args:
        scores: `[N]`.
        gold: `[N]`.
        n: at most N.
    """
    count = len(scores)
    order = np.lexsort((-np.arange(count), scores))
    chance = np.array([math.comb(i, n - 1) / math.comb(count, n) for i in range(count)])
    return float(chance @ gold[order])


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n over a uniform choice, in nats, for scores without ties: `log n − (n − 1) / n`."""
    return math.log(n) - (n - 1) / n


def auroc(inside: Sequence[float] | np.ndarray, outside: Sequence[float] | np.ndarray) -> float:
    """Probability that a value from outside exceeds one from inside; ties count half."""
    inside, outside = np.asarray(inside), np.asarray(outside)
    larger = (outside[:, None] > inside[None, :]).mean()
    return float(larger + 0.5 * (outside[:, None] == inside[None, :]).mean())


def rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's, of values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])
