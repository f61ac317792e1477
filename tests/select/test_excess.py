"""Mean excess over a threshold, against its integral and its inverse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesrm_fast.select.excess import expected_excess, reservation_value


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (2.0, 0.5), (-3.0, 1.0), (1.0, 0.0), (-1.0, 0.0)])
def test_the_excess_is_its_integral(mean, std):
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    density = (-(z**2) / 2).exp() / math.sqrt(2 * math.pi) * float(z[1] - z[0])
    expected = float((density * (mean + std * z - 0.25).clamp(min=0)).sum())
    assert float(expected_excess(float64(mean), float64(std), 0.25)) == pytest.approx(expected, rel=1e-8, abs=1e-15)


def test_a_far_excess_keeps_its_digits():
    """φ(z) − z Φ(−z) = φ(z) (1/z² − 3/z⁴ + 15/z⁶ − …), an alternating series."""
    z = 30.0
    series = 1 / z**2 - 3 / z**4 + 15 / z**6 - 105 / z**8 + 945 / z**10
    expected = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) * series
    # Both terms are 1/z² times the difference; the next term of the series is 1e-11 of it.
    assert float(expected_excess(float64(-z), float64(1.0), 0.0)) == pytest.approx(expected, rel=1e-10)
    assert float(expected_excess(float64(-1e6), float64(1.0), 0.0)) == 0.0


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.tuples(st.floats(-100, 100), st.floats(0, 10) | st.just(0.0)), min_size=1, max_size=8),
    cost=st.floats(1e-12, 1e4),
)
def test_the_reservation_value_has_the_excess_asked_for(values, cost):
    mean, std = float64(*(v[0] for v in values)), float64(*(v[1] for v in values))
    threshold = reservation_value(mean, std, cost)
    # An error of a rounding in τ, next to values of up to 100, is as large an error of the excess.
    rounding = 1e-15 * (100 + abs(threshold))
    assert float(expected_excess(mean, std, threshold).mean()) == pytest.approx(cost, rel=1e-9, abs=4 * rounding)


@pytest.mark.parametrize("cost", [1e-300, 1e-30, 1e-3, 1.0, 1e3])
def test_the_reservation_value_of_one_gaussian_at_any_cost(cost):
    threshold = reservation_value(float64(0.0), float64(1.0), cost)
    assert float(expected_excess(float64(0.0), float64(1.0), threshold)) == pytest.approx(cost, rel=1e-10)


def test_uncertainty_raises_the_reservation_value_without_a_jump():
    mean = float64(1.0, 0.0, -2.0)
    values = [reservation_value(mean, torch.full_like(mean, std), 0.3) for std in (0.0, 1e-12, 1e-3, 0.1, 1.0)]
    assert values == sorted(values)
    # Two at 1 and 0 above λ would give (1 + 0 − 0.9) / 2: it is above 0, so that only the first counts.
    assert values[0] == pytest.approx(0.1, rel=1e-14)
    assert values[1] - values[0] < 1e-12
