"""What every drop-in takes beside its protocol's own fields, in the body or in the address."""

import math
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, field_validator

from bayesrm_fast.serve.options import RELATIVE_IS_REFUSED, RewardChoice, RewardKind
from bayesrm_fast.serve.served import Call, Record, Served


class RewardFields(BaseModel):
    """Which model, and what of it is *the* reward; a trainer that knows no such field has them in its address."""

    model: str | None = Field(None, description="Name of the model. Default: the first.")
    reward: RewardKind | None = Field(
        None, description="What is the reward: `mean`, or `lcb` for mean − k·std. Default: what the server was told."
    )
    k: float | None = Field(None, ge=0, allow_inf_nan=False, description="Weight of the std in `lcb`.")

    @field_validator("reward", mode="before")
    @classmethod
    def is_of_one_sample(cls, value: Any) -> Any:
        """Say why a reward is not relative here."""
        if value == "relative":
            raise ValueError(RELATIVE_IS_REFUSED)
        return value


class DropInFields(RewardFields):
    """The same in a body."""

    model_config = ConfigDict(strict=True)


FromAddress = Annotated[RewardFields, Query()]


def call_of(served: Served, record: Record, address: RewardFields, body: RewardFields) -> Call:
    """The request's way to its model, which waits where the queue is full."""
    return Call(served, record, body.model if body.model is not None else address.model, has_patience=True)


def reward_of(served: Served, address: RewardFields, body: RewardFields) -> RewardChoice:
    """What is the reward: by the body, by the address, or as the server was told."""
    default = served.options.reward
    kind = body.reward or address.reward or default.kind
    k = next((given for given in (body.k, address.k) if given is not None), default.k)
    return RewardChoice(kind, k)


def rewards_of(choice: RewardChoice, mean: list[float], std: list[float] | None) -> list[float]:
    """The rewards; without std they are the means."""
    if std is None:
        return mean
    return [choice.of(one, spread) for one, spread in zip(mean, std, strict=True)]


def sigmoid(value: float) -> float:
    """σ, without overflow."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))
