"""What one reward is lessened by for its own uncertainty, where there are no other candidates to choose among."""

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from torch import Tensor

from bayesrm_fast.errors import InputError, shown
from bayesrm_fast.select.checks import at_least

Penalty = Literal["std", "entropic", "none"]

Std = TypeVar("Std", float, Tensor)


@dataclass(frozen=True)
class PenaltyOfStd:
    """What is subtracted from a reward of such a posterior std.

    Args:
        kind: "std" for k·std; "entropic" for k/2·std², which makes of the mean the certainty equivalent
            `−(1/k)·log E exp(−k·reward)`; "none".
        k: its weight, at least 0; in units of 1/reward for "entropic".

    Raises:
        InputError: an unknown penalty, or a k that is no finite number of at least 0.
    """

    kind: Penalty = "none"
    k: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Penalty):
            raise InputError(f"penalty must be one of {', '.join(get_args(Penalty))}, not {shown(self.kind)}")
        at_least(self.k, 0, "k")

    def of(self, std: Std) -> Std:
        """Elementwise; NaN of NaN."""
        if self.kind == "std":
            return self.k * std
        if self.kind == "entropic":
            return self.k / 2 * std * std
        return 0 * std
