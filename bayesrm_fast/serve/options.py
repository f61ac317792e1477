"""What a server is told when it starts."""

import math
from dataclasses import dataclass, field

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.penalties import PenaltyOfStd

SHUTDOWN_SECONDS = 20
"""Beside the patience: in which accepted requests are finished when a server is told to end."""


@dataclass(frozen=True)
class ServerOptions:
    """What a server is told when it starts.

    Args:
        penalty: what drop-ins subtract from a sample's mean reward; a request may ask for another.
        threshold: what a reward is compared with where a protocol wants a probability, in units of the reward.
        token: what clients must send as a bearer token; None for no token.
        max_body_bytes: of a request.
        max_nesting: of arrays and objects in a request's JSON.
        max_responses: that one request may have scored.
        patience: seconds after which a drop-in's request ends with 503; trainers give up after 120 or 180.

    Raises:
        InputError: a limit below one, an empty token, or a threshold or patience that is no number.
    """

    penalty: PenaltyOfStd = field(default_factory=PenaltyOfStd)
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

    @property
    def seconds_to_shut_down(self) -> int:
        """In which every accepted request is answered, when the server is told to end."""
        return math.ceil(self.patience) + SHUTDOWN_SECONDS
