"""What probabilities are worth."""

import math

import pytest
import torch

from bayesrm_fast.fit.reliability import BINS, reliability


def test_reliability_of_known_probabilities():
    found = reliability(torch.tensor([0.92, 0.92, 0.18, 0.62], dtype=torch.float64))
    assert found.accuracy == 0.75
    assert found.nll == pytest.approx(-(2 * math.log(0.92) + math.log(0.18) + math.log(0.62)) / 4)
    assert found.brier == pytest.approx((2 * 0.08**2 + 0.82**2 + 0.38**2) / 4)
    counts = {round(b.low, 2): (b.count, round(b.confidence, 6), b.accuracy) for b in found.bins if b.count}
    assert counts == {0.6: (1, 0.62, 1.0), 0.8: (1, 0.82, 0.0), 0.9: (2, 0.92, 1.0)}
    assert found.ece == pytest.approx((0.38 + 0.82 + 2 * 0.08) / 4)
    assert sum(b.count for b in found.bins) == 4
    assert len(found.bins) == BINS


def test_certain_and_right_is_a_nll_of_zero_without_a_sign():
    assert str(reliability(torch.ones(3, dtype=torch.float64)).nll) == "0.0"
