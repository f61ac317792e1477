"""HedgeTune: how hard to optimise a proxy reward before its gold falls (Khalaf et al., arXiv 2506.19248)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.checks import at_least, finite_values
from bayesrm_fast.select.laws import BestOfNLaw, BestOfPoissonLaw, Law, SoftBestOfNLaw

POINTS = 48
"""Of a curve."""

LawFamily = type[BestOfNLaw] | type[BestOfPoissonLaw] | type[SoftBestOfNLaw]


@dataclass(frozen=True)
class HedgingPool:
    """One prompt's candidates with their proxy rewards and their gold.

    Attributes:
        scores: proxy rewards `[n]`.
        gold: `[n]`, or S equally likely possibilities of it `[S, n]`.

    Raises:
        InputError: values that are not finite, or other shapes.
    """

    scores: Tensor
    gold: Tensor

    def __post_init__(self) -> None:
        finite_values(self.scores, "scores")
        shape = list(self.gold.shape)
        if len(shape) not in (1, 2) or shape[-1] != len(self.scores) or 0 in shape:
            raise InputError(f"gold must be [n] or [S, n] for n = {len(self.scores)} candidates, not {shape}")
        finite_values(self.gold.reshape(-1), "gold")


@dataclass(frozen=True)
class HedgedParameter:
    """Where the expected gold is largest.

    Attributes:
        parameter: θ. That of best-of-n is real: compare the whole numbers next to it.
        is_interior: whether it is a root of the gold's derivative. Otherwise it is an end of the curve: the gold rises
            or falls throughout, or does not change.
        curve: `(θ, value)` from the weakest optimisation to the strongest.
    """

    parameter: float
    is_interior: bool
    curve: tuple[tuple[float, float], ...]


def hedge(law: LawFamily, pools: Sequence[HedgingPool], aversion: float = 0.0) -> HedgedParameter:
    """The root in θ of `E_θ[g(U) ∂_θ log p_θ(U)] = 0` where `E_θ[g(U)]` is largest, g the gold at the proxy's quantile.

    Expectations are exact on each pool and averaged over pools, so that g needs no smoothing; from few pools it is as
    uncertain as they are. The left side is the derivative of `E_θ[g(U)]`. Among equal values the weakest optimisation
    is taken: a g that is flat is not optimised at all.

    Of possibilities of the gold, the value of θ is the mean over them of `E_θ[g]` less `aversion` times its std over
    them. With `aversion` 0 only their mean matters. If that is the proxy itself, as for draws from a posterior
    and the posterior's mean, it rises throughout and there is nothing to hedge: only a taste against risk is a reason
    not to take the best mean.

    Args:
        law: the family, with the parameter n, θ or λ.
        pools: of calibration prompts, their gold judged or drawn from a posterior. Those of equal scores say nothing.
        aversion: at least 0.

    Raises:
        InputError: no pool whose scores differ, or an aversion that is negative or not finite.
    """
    at_least(aversion, 0, "aversion")
    told = [pool for pool in pools if float(pool.scores.max()) > float(pool.scores.min())]
    if not told:
        raise InputError("there is nothing to hedge by: no prompt has candidates of different scores")
    path = law.path([pool.scores for pool in told], POINTS)
    values, slopes = zip(*(value_of(law(parameter), told, aversion) for parameter in path), strict=True)
    curve = tuple(zip(path, values, strict=True))
    # Of what is equal but for rounding the weakest.
    rounding = 1e-12 * max(float(pool.gold.double().abs().max()) for pool in told)
    best = next(i for i, value in enumerate(values) if value >= max(values) - rounding)
    # A derivative in θ is one in strength where θ grows along the path.
    sign = 1.0 if path[-1] > path[0] else -1.0
    rising = sign * slopes[best] > 0
    other = best + 1 if rising else best - 1
    if max(values) - min(values) <= rounding or not 0 <= other < POINTS or (sign * slopes[other] > 0) == rising:
        return HedgedParameter(path[best], 0 < best < POINTS - 1, curve)
    weak, strong = sorted((best, other))
    low, high = path[weak], path[strong]
    for _ in range(60):
        middle = (low + high) / 2
        if sign * value_of(law(middle), told, aversion)[1] > 0:
            low = middle
        else:
            high = middle
    return HedgedParameter((low + high) / 2, True, curve)


def value_of(law: Law, pools: Sequence[HedgingPool], aversion: float) -> tuple[float, float]:
    """Mean over pools of the value of a law's θ, and its derivative."""
    value = slope = 0.0
    for pool in pools:
        probabilities, slopes = law.of_pool(pool.scores)
        gold = pool.gold.to("cpu", torch.float64).reshape(-1, len(probabilities))
        expected, derivative = gold @ probabilities, gold @ slopes
        value += float(expected.mean())
        slope += float(derivative.mean())
        std = float(expected.std(correction=0))
        if aversion > 0 and std > 0:
            value -= aversion * std
            slope -= aversion * float((expected - expected.mean()) @ derivative) / (len(expected) * std)
    return value / len(pools), slope / len(pools)
