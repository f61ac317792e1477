"""How far probabilities can be believed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Pairs whose predicted side has a probability between `low` and `high`.

    Attributes:
        low, high: its edges.
        count: pairs in it.
        confidence: mean probability of the predicted side; NaN for an empty bin.
        accuracy: share of its predictions that are right; NaN for an empty bin.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """What probabilities of preference pairs were worth.

    Attributes:
        accuracy: share of the pairs whose chosen response has more than ½.
        nll: mean negative log likelihood, in nats.
        brier: mean of `(1 − p)²`.
        ece: expected calibration error over `bins`.
        bins: of equal width, of the probability of the predicted side from ½ to 1.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float
    bins: list[Bin]


def reliability(probability: Tensor) -> Reliability:  # shape: (M,)
    """Of the probabilities that were given to what happened.

    Raises:
        InputError: no pairs.
    """
    if len(probability) == 0:
        raise InputError("there are no pairs to calibrate on")
    probability = probability.double()
    confidence = torch.maximum(probability, 1 - probability)
    right = (probability > 0.5).double()
    index = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    bins = []
    for i in range(BINS):
        inside = index == i
        low, high = 0.5 + i / (2 * BINS), 0.5 + (i + 1) / (2 * BINS)
        bins.append(
            Bin(low, high, int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean()))
            if inside.any()
            else Bin(low, high, 0, math.nan, math.nan)
        )
    return Reliability(
        accuracy=float(right.mean()),
        nll=float(probability.clamp(min=torch.finfo(probability.dtype).tiny).log().neg().mean()),
        brier=float((1 - probability).square().mean()),
        ece=sum(b.count * abs(b.confidence - b.accuracy) for b in bins if b.count) / len(probability),
        bins=bins,
    )
