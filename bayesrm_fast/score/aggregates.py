"""Moments of what is made of jointly Gaussian scores: the least of them, and the product of their σ."""

import torch
from torch import Tensor

GRID_ENDS = 9.0
"""Standard deviations on each side: a Gaussian has 10⁻¹⁸ beyond."""

GRID_POINTS = 1025
"""Of a trapezoidal rule, which for a smooth function of a Gaussian is exact to rounding once its points are dense."""


def minimum(mean: Tensor, covariance: Tensor) -> tuple[float, float]:  # shapes: (S,), (S, S)
    """Mean and variance of the least of S jointly Gaussian numbers.

    By Clark's moments (*The greatest of a finite set of random variables*, 1961), one number after the other: exact for
    two, and for more as if the least of those before were Gaussian.
    """
    m, c = -mean.double(), covariance.double().clone()
    best, variance, shared = m[0], c[0, 0], c[0].clone()  # of the greatest so far, and its covariances with all
    for k in range(1, len(m)):
        spread = (variance + c[k, k] - 2 * shared[k]).clamp(min=0).sqrt()
        if spread <= torch.finfo(m.dtype).eps * (variance + c[k, k]).sqrt():  # the two differ by a constant
            if m[k] > best:
                best, variance, shared = m[k], c[k, k], c[k].clone()
            continue
        alpha = (best - m[k]) / spread
        first, second = torch.special.ndtr(alpha), torch.special.ndtr(-alpha)
        density = spread * torch.exp(-(alpha**2) / 2) / (2 * torch.pi) ** 0.5
        mean_of_both = best * first + m[k] * second + density
        square = (best**2 + variance) * first + (m[k] ** 2 + c[k, k]) * second + (best + m[k]) * density
        best, variance = mean_of_both, (square - mean_of_both**2).clamp(min=0)
        shared = shared * first + c[k] * second
    return float(-best), float(variance)


def chained_products(mean: Tensor, covariance: Tensor, power: int = 1) -> Tensor:  # shapes: (S,), (S, S) -> (S,)
    """`E[Π_{j≤k} σ(z_j)^power]` of jointly Gaussian z, for every k, float64.

    By assumed density filtering: after each factor the Gaussian takes the mean and the covariance that it has times the
    factor, by quadrature over z_k. For one z and for independent ones that is all it errs by: 10⁻⁵ up to a std of 100.
    """
    m, c = mean.double().clone(), covariance.double().clone()
    u = torch.linspace(-GRID_ENDS, GRID_ENDS, GRID_POINTS, dtype=torch.float64, device=m.device)
    log_weight = -(u**2) / 2 - torch.logsumexp(-(u**2) / 2, 0)
    logs = torch.zeros_like(m)
    for k in range(len(m)):
        std = c[k, k].clamp(min=0).sqrt()
        z = m[k] + std * u
        log_terms = log_weight + power * torch.nn.functional.logsigmoid(z)
        logs[k] = torch.logsumexp(log_terms, 0)
        if std == 0:
            continue
        tilted = torch.softmax(log_terms, 0)
        shift = tilted @ u  # of z_k in its own standard deviations
        shrinkage = tilted @ (u - shift) ** 2 - 1
        gain = c[:, k] / std
        m += gain * shift
        c += torch.outer(gain, gain) * shrinkage
    return logs.cumsum(0).exp()


def product(mean: Tensor, covariance: Tensor) -> tuple[float, float]:  # shapes: (S,), (S, S)
    """Mean and variance of `Π σ(z_k)` of jointly Gaussian z, by `chained_products`."""
    first = float(chained_products(mean, covariance)[-1])
    second = float(chained_products(mean, covariance, power=2)[-1])
    return first, max(second - first**2, 0.0)
