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


def calibration(probability: np.ndarray, bins: int = 10) -> dict[str, float]:
    """Accuracy, NLL (nats) and ECE of the probabilities that were given to what happened.

    ECE with equal-width bins of the probability of the predicted side, from 0.5 to 1.
    """
    confidence = np.maximum(probability, 1 - probability)
    correct = (probability > 0.5).astype(float)
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = [
        abs(confidence[index == b].mean() - correct[index == b].mean()) * (index == b).mean()
        for b in range(bins)
        if (index == b).any()
    ]
    return {
        "accuracy": float(correct.mean()),
        "nll": float(-np.log(np.clip(probability, 1e-12, 1)).mean()),
        "ece": float(sum(gaps)),
    }


def auroc(inside: Sequence[float] | np.ndarray, outside: Sequence[float] | np.ndarray) -> float:
    """Probability that a value from outside exceeds one from inside; ties count half."""
    inside, outside = np.asarray(inside), np.asarray(outside)
    larger = (outside[:, None] > inside[None, :]).mean()
    return float(larger + 0.5 * (outside[:, None] == inside[None, :]).mean())


def rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's, of values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])
