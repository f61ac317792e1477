"""What a server is told when it starts."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from bayesrm_fast.errors import InputError

RewardKind = Literal["mean", "lcb"]
"""What a protocol with one number for each sample gets: the mean, or the lower confidence bound `mean − k·std`."""

RELATIVE_IS_REFUSED = (
    "a relative reward is a difference to the prompt's other candidates, and this protocol sends one sample alone: "
    "take mean or lcb here, and relative ones from /v1/rewards"
)


@dataclass(frozen=True)
class RewardChoice:
    """What is *the* reward of a sample.

    Args:
        kind: "mean", or "lcb" for `mean − k·std`.
        k: weight of the std; "mean" reads it not.

    Raises:
        InputError: another kind, or a k that is negative or not finite.
    """

    kind: RewardKind = "mean"
    k: float = 1.0

    def __post_init__(self) -> None:
        if self.kind == "relative":
            raise InputError(RELATIVE_IS_REFUSED)
        if self.kind not in get_args(RewardKind):
            raise InputError(f"the reward must be one of {', '.join(get_args(RewardKind))}, not {self.kind!r}")
        if not (math.isfinite(self.k) and self.k >= 0):
            raise InputError(f"k must be a finite number of at least 0, not {self.k}")

    def of(self, mean: float, std: float) -> float:
        """The reward of one sample, in units of the reward.

        Raises:
            InputError: a k for which it is not finite.
        """
        reward = mean if self.kind == "mean" else mean - self.k * std
        if not math.isfinite(reward):
            raise InputError(f"k is {self.k}, and the reward less k times its std is not a finite number")
        return reward


@dataclass(frozen=True)
class ServerOptions:
    """What a server is told when it starts.

    Args:
        reward: what drop-ins give as the reward; a request may ask for another.
        threshold: what a reward is compared with where a protocol wants a probability, in units of the reward.
        token: what clients must send as a bearer token; None for no token.
        max_body_bytes: of a request.
        max_nesting: of arrays and objects in a request's JSON.
        max_responses: that one request may have scored.
        patience: seconds after which a drop-in's request ends with 503; trainers give up after 120 or 180.

    Raises:
        InputError: a limit below one, an empty token, or a threshold or patience that is no number.
    """

    reward: RewardChoice = field(default_factory=RewardChoice)
    threshold: float = 0.0
    token: str | None = field(default=None, repr=False)
    max_body_bytes: int = 8 * 2**20
    max_nesting: int = 32
    max_responses: int = 256
    patience: float = 100.0

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_nesting", "max_responses"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not math.isfinite(self.threshold):
            raise InputError(f"threshold must be a finite number, not {self.threshold}")
        if not (math.isfinite(self.patience) and self.patience > 0):
            raise InputError(f"patience must be a positive number of seconds, not {self.patience}")
        if self.token is not None and not self.token:
            raise InputError("the token is empty")
