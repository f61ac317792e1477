"""What every drop-in takes beside its protocol's own fields, in the body or in the address."""

import math
from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.penalties import Penalty, PenaltyOfStd
from bayesrm_fast.serve.served import Call, Record, Served


class RewardFields(BaseModel):
    """Which model, and what of it is *the* reward; a trainer that knows no such field has them in its address."""

    model: str | None = Field(None, description="Name of the model. Default: the first.")
    penalty: Penalty | None = Field(
        None,
        description="What is subtracted from the mean reward: `std` for k·std, `entropic` for k/2·std², or `none`. "
        "Default: what the server was told.",
    )
    k: float | None = Field(None, ge=0, allow_inf_nan=False, description="Weight of the penalty.")


class DropInFields(RewardFields):
    """The same in a body."""

    model_config = ConfigDict(strict=True)


FromAddress = Annotated[RewardFields, Query()]


def call_of(served: Served, record: Record, address: RewardFields, body: RewardFields) -> Call:
    """The request's way to its model, which waits where the queue is full."""
    return Call(served, record, body.model if body.model is not None else address.model, has_patience=True)


def penalty_of(served: Served, address: RewardFields, body: RewardFields) -> PenaltyOfStd:
    """What a mean reward is lessened by: by the body, by the address, or as the server was told."""
    default = served.options.penalty
    k = next((given for given in (body.k, address.k) if given is not None), default.k)
    kind = body.penalty or address.penalty or default.kind
    if kind == "none" and not (body.k is None and address.k is None):
        raise InputError("k is the weight of a penalty, and there is none: give penalty, std or entropic")
    return PenaltyOfStd(kind, k)


def rewards_of(penalty: PenaltyOfStd, mean: list[float], std: list[float] | None) -> list[float]:
    """The rewards; without std they are the means.

    Raises:
        InputError: a k for which one is not finite.
    """
    if std is None:
        return mean
    rewards = [one - penalty.of(spread) for one, spread in zip(mean, std, strict=True)]
    if not all(map(math.isfinite, rewards)):
        raise InputError(f"k is {penalty.k}, and a reward less its penalty is not a finite number")
    return rewards


def sigmoid(value: float) -> float:
    """σ, without overflow."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))
