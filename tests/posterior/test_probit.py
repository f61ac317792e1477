"""The probability that a difference decides."""

import pytest
import torch

from bayesrm_fast.posterior.probit import probit_probability

DIFFERENCES = torch.tensor([-4.0, -0.5, 0.0, 1.0, 3.0], dtype=torch.float64)


def test_without_variance_it_is_the_logistic_function_of_the_difference_over_the_temperature():
    zero = torch.zeros(5, dtype=torch.float64)
    torch.testing.assert_close(probit_probability(DIFFERENCES, zero), torch.sigmoid(DIFFERENCES))
    torch.testing.assert_close(probit_probability(DIFFERENCES, zero, 2.5), torch.sigmoid(DIFFERENCES / 2.5))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("variance", [0.1, 1.0, 9.0])
def test_it_is_the_logistic_gaussian_integral(variance, temperature):
    """MacKay's approximation is within 0.02 of the integral of `σ(Δ / T)`, here by the midpoint rule."""
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    draws = DIFFERENCES[:, None] + variance**0.5 * 2**0.5 * torch.erfinv(2 * grid - 1)
    integral = torch.sigmoid(draws / temperature).mean(1)
    found = probit_probability(DIFFERENCES, torch.tensor(variance, dtype=torch.float64), temperature)
    assert (found - integral).abs().max() < 0.02


def test_variance_draws_a_probability_towards_a_half_and_never_over_it():
    variances = torch.tensor([0.0, 1.0, 100.0, 1e12], dtype=torch.float64)
    found = torch.stack([probit_probability(DIFFERENCES, variance) for variance in variances])
    distance = (found - 0.5).abs()
    assert (distance[1:] <= distance[:-1]).all()
    assert ((found - 0.5).sign() * DIFFERENCES.sign() >= 0).all()
    assert distance[-1].max() < 1e-5
