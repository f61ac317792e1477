"""How far Gaussian values exceed a threshold, and the threshold that a given mean excess belongs to."""

import math

import torch
from torch import Tensor

SMALLEST = torch.finfo(torch.float64).tiny
FAR = 40.0
"""Standard deviations beyond which the mean excess is below the smallest float64."""


def expected_excess(mean: Tensor, std: Tensor, threshold: float) -> Tensor:  # shapes: (n,), (n,) -> (n,)
    """`E (v − τ)⁺` for v ~ N(mean, std²): `s (φ(z) + z Φ(z))`, `z = (mean − τ) / s`; `(mean − τ)⁺` at s = 0.

    Computed as `(mean − τ)⁺ + s (φ(|z|) − |z| Φ(−|z|))`, which keeps its digits for both signs of z.
    """
    above = mean - threshold
    distance = (above.abs() / std.clamp(min=SMALLEST)).clamp(max=FAR)
    tail = 1 / math.sqrt(2 * math.pi) - distance / 2 * torch.special.erfcx(distance / math.sqrt(2))
    excess: Tensor = above.clamp(min=0) + std * (-(distance**2) / 2).exp() * tail.clamp(min=0)
    return excess


def reservation_value(mean: Tensor, std: Tensor, cost: float) -> float:  # shapes: (n,), (n,)
    """The τ at which the mean over n values of `E (v_i − τ)⁺` is `cost`, which is above 0.

    With stds of 0 it is exact, by sorting. Otherwise by Newton's method on the logarithm between bounds, to rounding.
    """
    top = float(mean.max())
    unit = max(cost, float(std.max()))
    target = max(cost / unit, SMALLEST)
    return top + unit * _reservation((mean - top) / unit, std / unit, target)


def _reservation(mean: Tensor, std: Tensor, cost: float) -> float:
    """Of values of at most 0, in a unit in which cost and stds are at most 1 and one of them is."""
    # Uncertainty only adds to the mean excess, so that the τ without it is a lower bound.
    low = _certain_reservation(mean, cost)
    largest = float(std.max())
    if largest == 0:
        return low
    # s φ(t) ≤ cost at all stds, and φ(t) is above the mean excess at t stds
    reach = math.sqrt(2 * max(0.0, math.log(largest / (cost * math.sqrt(2 * math.pi)))))
    high = max(low, float((mean + std * reach).max()))
    threshold = low
    for _ in range(200):
        excess = float(expected_excess(mean, std, threshold).mean())
        if excess > cost:
            low = threshold
        else:
            high = threshold
        slope = float(_probability_above(mean, std, threshold).mean())
        following = (low + high) / 2
        if excess > 0 and slope > 0:
            newton = threshold + math.log(excess / cost) * excess / slope
            following = newton if low < newton < high else following
        if abs(following - threshold) <= 2e-16 * abs(following) or not low < following < high:
            return following
        threshold = following
    return threshold


def _certain_reservation(mean: Tensor, cost: float) -> float:
    """`mean (r_i − τ)⁺ = cost`: with the k largest above τ, it is `(Σ_{i≤k} r_i − n cost) / k`."""
    ordered = mean.sort(descending=True).values
    count = torch.arange(1, len(mean) + 1, dtype=torch.float64, device="cpu")
    thresholds = (ordered.cumsum(0) - len(mean) * cost) / count
    return float(thresholds[int((ordered > thresholds).sum()) - 1])


def _probability_above(mean: Tensor, std: Tensor, threshold: float) -> Tensor:
    probability: Tensor = torch.special.ndtr((mean - threshold) / std.clamp(min=SMALLEST))
    return probability
