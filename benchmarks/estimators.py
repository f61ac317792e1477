"""How well one list of numbers tells another."""

from collections.abc import Sequence

import numpy as np


def auroc(inside: Sequence[float] | np.ndarray, outside: Sequence[float] | np.ndarray) -> float:
    """Probability that a value from outside exceeds one from inside; ties count half."""
    inside, outside = np.asarray(inside), np.asarray(outside)
    larger = (outside[:, None] > inside[None, :]).mean()
    return float(larger + 0.5 * (outside[:, None] == inside[None, :]).mean())


def rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's, of values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])
