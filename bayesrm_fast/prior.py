"""The prior precision λ, by evidence or by held-out pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.posterior import Posterior

GRID = tuple(10.0 ** (exponent / 4) for exponent in range(-16, 33))
"""λ from 1e-4 to 1e8, four values a decade: where the curve is shown, and what held-out pairs choose from."""

NO_EVIDENCE = "the evidence grows with λ for ever where all weights are zero (virtual adapters): use 'margins'"


@dataclass(frozen=True)
class PriorChoice:
    """A chosen prior precision and the curve that it was chosen from.

    Attributes:
        method: "evidence", "validation" or "margins".
        criterion: what the curve shows, or what the choice is.
        best: the chosen λ.
        curve: `(λ, criterion)`; empty where λ follows without a search.
    """

    method: str
    criterion: str
    best: float
    curve: list[tuple[float, float]]


def by_evidence(posterior: Posterior) -> PriorChoice:
    """The λ that maximises the Laplace evidence.

    Its derivative by log λ is half of `γ(λ) − λ‖θ‖²` with γ the effective number of parameters (MacKay, *Bayesian
    Interpolation*, 1992). Both terms are monotone, so there is one root, found by bisection.

    Raises:
        InputError: weights that are all zero, as virtual adapters' are, for which the evidence grows with λ for ever;
            or a posterior that was fitted without labels.
    """
    if posterior.record.squared_norm == 0:
        raise InputError(NO_EVIDENCE)

    def slope(log_precision: float) -> float:
        precision = math.exp(log_precision)
        return posterior.effective_parameters(precision) - precision * posterior.record.squared_norm

    low, high = math.log(GRID[0]), math.log(GRID[-1])
    for _ in range(60):
        middle = (low + high) / 2
        if slope(middle) > 0:
            low = middle
        else:
            high = middle
    curve = [(precision, posterior.log_evidence(precision)) for precision in GRID]
    return PriorChoice("evidence", "log evidence", math.exp((low + high) / 2), curve)


def by_margins(
    margins: Tensor,  # shape: (M,)
    squared_norms: Tensor,  # shape: (M,)
) -> PriorChoice:
    """The λ at which the prior alone expects reward differences as large as the model's own.

    Under `N(0, λ⁻¹I)` on the weights the linearised model's difference of a pair has the variance `‖j‖² / λ`; its mean
    over the pairs is to be that of the squared margins (docs/maths.md, section 10).

    Raises:
        InputError: margins that are all zero, or gradients that are.
    """
    square, norm = float(margins.double().square().mean()), float(squared_norms.double().mean())
    if not (square > 0 and norm > 0):
        raise InputError("prior_precision='margins' needs pairs whose rewards differ, and depend on the weights")
    return PriorChoice("margins", "mean ‖j‖² over mean squared margin", norm / square, [])


def probit_probability(difference: Tensor, variance: Tensor, temperature: float = 1.0) -> Tensor:
    """`σ(Δ / √(T² + π v / 8))`, the probability that a reward difference `N(Δ, v)` decides for the first response.

    The probit approximation of a logistic-Gaussian integral (MacKay, *The evidence framework applied to
    classification networks*, 1992), of the difference over a temperature T.
    """
    return torch.sigmoid(difference / (temperature**2 + math.pi / 8 * variance).sqrt())


def by_validation(
    difference: Tensor,  # shape: (M,)
    variance: Tensor,  # shape: (L, M)
    precisions: Sequence[float],
) -> PriorChoice:
    """The λ under which held-out pairs, the chosen response first, have the smallest probit NLL in nats a pair."""
    scaled = difference / (1 + math.pi / 8 * variance.double()).sqrt()
    nll = -torch.nn.functional.logsigmoid(scaled).mean(1)
    curve = list(zip(precisions, nll.tolist(), strict=True))
    return PriorChoice("validation", "held-out negative log likelihood", precisions[int(nll.argmin())], curve)
