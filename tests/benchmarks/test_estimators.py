"""The benchmark's estimators against brute force."""

import numpy as np
import pytest

from benchmarks.estimators import rank_correlation


def test_rank_correlation_sees_order_alone():
    values = np.array([0.1, 2.0, 0.5, 9.0])
    assert rank_correlation(values, np.exp(values)) == pytest.approx(1.0)
    assert rank_correlation(values, -values) == pytest.approx(-1.0)
    # Two neighbours swapped among four: 1 − 6 Σd² / (n³ − n) = 1 − 12/60.
    assert rank_correlation(values, np.array([0.5, 2.0, 0.1, 9.0])) == pytest.approx(0.8)
