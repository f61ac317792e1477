"""The prior precision λ, by evidence, by held-out pairs or by the model's own margins; and what that needs to know."""

import math
import warnings
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.fit.ranks import ALONE, Ranks
from bayesrm_fast.model.passes import Passes, Progress, label_logits, unit_cotangent
from bayesrm_fast.ops import segment_outer
from bayesrm_fast.posterior.base import Posterior, PriorChoice
from bayesrm_fast.posterior.probit import probit_logit
from bayesrm_fast.sites import Site
from bayesrm_fast.text.examples import LabelledExample

GRID = tuple(10.0 ** (exponent / 4) for exponent in range(-16, 33))
"""λ from 1e-4 to 1e8, four values a decade: where the curve is shown, and what held-out pairs choose from."""

HELD_OUT_NLL = "held-out negative log likelihood"
"""What a curve of held-out pairs shows."""

NO_EVIDENCE = "the evidence grows with λ for ever where all weights are zero (virtual adapters): use 'margins'"


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
    if slope(math.log(GRID[0])) <= 0:
        _warn(f"evidence is largest at {GRID[0]:g} or below: the pairs determine next to nothing of the weights")
    elif slope(math.log(GRID[-1])) >= 0:
        _warn(f"evidence is largest at {GRID[-1]:g} or above: the weights are next to zero")
    return PriorChoice(math.exp((low + high) / 2), "evidence", "log evidence", curve)


def _warn(what: str) -> None:
    warnings.warn(
        f"the {what}. λ is an end of its grid and no measurement; take 'margins', 'validation' or a number",
        stacklevel=3,
    )


def warn_of_an_end(name: str, chosen: float, values: Sequence[float]) -> None:
    """Warn where what held-out pairs chose is an end of several values."""
    if len(values) > 1 and chosen in (min(values), max(values)):
        end = "least" if chosen == min(values) else "largest"
        warnings.warn(
            f"the {name} that the pairs chose, {chosen:g}, is the {end} of the values to choose from: the best may lie "
            "beyond it, or the pairs may say little about it",
            stacklevel=3,
        )


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
    return PriorChoice(norm / square, "margins", "mean ‖j‖² over mean squared margin")


def by_validation(
    difference: Tensor,  # shape: (M,)
    variance: Tensor,  # shape: (L, M)
    precisions: Sequence[float],
) -> PriorChoice:
    """The λ under which held-out pairs, the chosen response first, have the smallest probit NLL in nats a pair."""
    nll = -torch.nn.functional.logsigmoid(probit_logit(difference, variance.double())).mean(1)
    curve = list(zip(precisions, nll.tolist(), strict=True))
    best = precisions[int(nll.argmin())]
    warn_of_an_end("prior precision", best, precisions)
    return PriorChoice(best, "validation", HELD_OUT_NLL, curve)


class _SquaredNorms:
    """Consumer that adds up `‖J‖²` of each segment over the sites, in float64."""

    gradients_alone = True

    def __init__(self) -> None:
        self.total = torch.zeros((), dtype=torch.float64, device="cpu")  # shape: (N,) once there is a site

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        gradient = segment_outer(p, q, offsets)
        squared_norm = torch.linalg.vector_norm(gradient, dim=(1, 2), dtype=torch.float64).square()
        self.total = self.total.to(gradient.device) + squared_norm


def margins_and_norms(
    passes: Passes, pairs: Sequence[LabelledExample], ranks: Ranks = ALONE
) -> tuple[Tensor, Tensor]:  # shapes: (M,), (M,)
    """Reward differences of pairs and the squared norms of their gradients, float64."""
    margins, norms = found = torch.zeros(2, len(pairs), dtype=torch.float64, device="cpu")
    for batch in ranks.over(passes, pairs, unit_cotangent, _SquaredNorms):
        margins[batch.positions] = batch.rewards.double().cpu()
        norms[batch.positions] = batch.consumer.total.cpu()
    ranks.add([found])
    return margins, norms


def variance_curve(
    passes: Passes,
    pairs: Sequence[LabelledExample],
    posterior: Posterior,
    precisions: Sequence[float],
    progress: Progress | None,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, Tensor]:  # shapes: (M,), (L, M)
    """The logits of the pairs' labels, and their variances at every λ of a list, float64."""
    difference = torch.zeros(len(pairs), dtype=torch.float64, device="cpu")
    variance = torch.zeros(len(precisions), len(pairs), dtype=torch.float64, device="cpu")
    make_consumer = partial(posterior.variance_curve_consumer, precisions)
    for batch in ranks.over(passes, pairs, unit_cotangent, make_consumer, progress):
        difference[batch.positions] = batch.rewards.double().cpu()
        variance[:, batch.positions] = batch.consumer.variance.double().cpu()
    ranks.add([difference, variance])
    return label_logits(difference, pairs), variance
