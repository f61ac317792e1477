"""How well one list of numbers tells another."""

import numpy as np


def rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's, of values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])
