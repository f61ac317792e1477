"""Moments of the least of several scores, and of products of their probabilities."""

import math

import pytest
import torch

from bayesrm_fast.score.aggregates import chained_products, minimum, product

MEAN = torch.tensor([1.2, -0.3, 2.0, 0.4], dtype=torch.float64)
FACTOR = torch.tensor([[0.9, 0.0, 0.0], [0.5, 0.7, 0.0], [0.4, -0.6, 0.8], [0.3, 0.2, 1.1]], dtype=torch.float64)
COVARIANCE = FACTOR @ FACTOR.T

DRAWS = 400_000


def drawn(mean, covariance):
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(len(mean), dtype=torch.float64))
    return mean + torch.randn(DRAWS, len(mean), generator=generator, dtype=torch.float64) @ root.T


def test_the_least_of_two_is_exact():
    """E min = μ − s/√(2π)·… for equal means: min(X, Y) = (X + Y − |X − Y|)/2."""
    mean, covariance = torch.zeros(2), torch.tensor([[1.0, 0.2], [0.2, 1.0]])
    spread = math.sqrt(2 - 0.4)
    expected = -spread * math.sqrt(2 / math.pi) / 2
    found, variance = minimum(mean, covariance)
    assert found == pytest.approx(expected, rel=1e-6)
    # E min² = (E X² + E Y²)/2, as max² + min² = X² + Y² and both have one law up to sign.
    assert variance == pytest.approx(1 - expected**2, rel=1e-6)


def test_the_least_of_several_is_close_to_that_of_draws():
    values = drawn(MEAN, COVARIANCE).amin(1)
    mean, variance = minimum(MEAN, COVARIANCE)
    assert mean == pytest.approx(float(values.mean()), abs=0.02 * float(values.std()))
    assert variance == pytest.approx(float(values.var()), rel=0.05)


def test_the_least_of_what_differs_by_a_constant_or_not_at_all():
    equal = torch.full((3, 3), 0.5, dtype=torch.float64)
    assert minimum(torch.tensor([1.0, 0.5, 2.0]), equal) == pytest.approx((0.5, 0.5))
    assert minimum(torch.tensor([1.0, 0.5]), torch.zeros(2, 2)) == pytest.approx((0.5, 0.0))
    assert minimum(torch.tensor([1.0]), torch.tensor([[0.3]])) == pytest.approx((1.0, 0.3))


def one_by_one(mean, variance, power):
    """By a plain sum over 200,001 points."""
    u = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    weight = torch.exp(-(u**2) / 2)
    value = torch.sigmoid(mean + variance.sqrt() * u) ** power
    return float((weight * value).sum() / weight.sum())


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 400.0])
def test_products_of_independent_scores_are_exact(power, scale):
    variance = scale * COVARIANCE.diagonal()
    expected = 1.0
    for k, found in enumerate(chained_products(MEAN, variance.diag(), power).tolist()):
        expected *= one_by_one(MEAN[k], variance[k], power)
        assert found == pytest.approx(expected, rel=1e-9)


def test_products_of_dependent_scores_are_close_to_those_of_draws():
    """After a factor the law is skewed a little, which is what the Gaussian in its place loses."""
    probabilities = torch.sigmoid(drawn(MEAN, COVARIANCE))
    chained = probabilities.cumprod(1)
    torch.testing.assert_close(chained_products(MEAN, COVARIANCE), chained.mean(0), rtol=0.01, atol=0)
    mean, variance = product(MEAN, COVARIANCE)
    assert mean == pytest.approx(float(chained[:, -1].mean()), rel=0.01)
    assert variance == pytest.approx(float(chained[:, -1].var()), rel=0.03)


def test_products_of_one_score_many_times_need_no_inverse():
    same = torch.ones(3, 3, dtype=torch.float64)
    u = drawn(torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))[:, 0]
    expected = [float((torch.sigmoid(u) ** k).mean()) for k in (1, 2, 3)]
    assert chained_products(torch.zeros(3), same).tolist() == pytest.approx(expected, rel=0.03)


def test_a_product_of_improbable_steps_does_not_underflow_on_the_way():
    mean = torch.full((3,), -300.0)
    assert chained_products(mean, torch.eye(3)).log()[0] == pytest.approx(-299.5, rel=1e-3)
    assert product(mean, torch.eye(3)) == (0.0, 0.0)
