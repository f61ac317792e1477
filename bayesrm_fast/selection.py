"""Which candidate to pick."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.text import Text

PENALTIES = ("none", "std", "variance")


@dataclass(frozen=True)
class BestOfN:
    """The chosen candidate.

    Attributes:
        index: its position among the responses; the lower one of equals.
        response: the response itself.
        scores: penalised rewards `[n]`.
        mean: MAP rewards `[n]`.
        variance: posterior variances `[n]`, in squared units of the reward.
        truncated: which rows `max_length` cut, `[n]`.
    """

    index: int
    response: Text
    scores: Tensor
    mean: Tensor
    variance: Tensor
    truncated: Tensor


def penalised(mean: Tensor, variance: Tensor, penalty: str, k: float) -> Tensor:
    """`mean`, `mean − k·std` or `mean − k·variance` (Yang et al., arXiv 2402.13210, section 3).

    Raises:
        InputError: an unknown penalty, or a k that is negative or not finite.
    """
    check_penalty(penalty, k)
    if penalty == "none":
        return mean
    return mean - k * (variance.sqrt() if penalty == "std" else variance)


def check_penalty(penalty: str, k: float) -> None:
    """Raise InputError for an unknown penalty, or a k that is negative or not finite."""
    if penalty not in PENALTIES:
        raise InputError(f"penalty must be one of {', '.join(PENALTIES)}, not {penalty!r}")
    if not 0 <= k < float("inf"):
        raise InputError(f"k must be a finite number of at least 0, not {k}")


def first_best(scores: Tensor) -> int:
    """Position of the largest score, the lowest one of equals."""
    return int(torch.nonzero(scores == scores.max())[0])
