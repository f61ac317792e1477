"""OpenRLHF's remote reward model: `--remote_rm_url http://…/get_reward`, one sample a request."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from bayesrm_fast.posterior.probit import probability_above
from bayesrm_fast.serve.answers import OF_A_POST
from bayesrm_fast.serve.protocols.fields import DropInFields, FromAddress, call_of, penalty_of, rewards_of
from bayesrm_fast.serve.served import Record, ServedModels

router = APIRouter(tags=["drop-in: OpenRLHF"])


class GetRewardBody(DropInFields):
    """What OpenRLHF sends. `prompts` and `labels` are taken and not read: `query` holds the whole text."""

    query: list[str] = Field(
        description="Prompt and response, decoded with their special tokens; tokenized as they stand.",
        examples=[["<s>What is 2 + 2?\n\nIt is 4.</s>"]],
    )
    prompts: Any = None
    labels: Any = None
    threshold: float | None = Field(None, description="`scores` are P(reward > threshold).")
    form: Literal["full", "rewards"] = Field(
        "full", description="`rewards` for an answer of rewards alone, whose means need no backward pass."
    )


class FullAnswer(BaseModel):
    """Rewards with what OpenRLHF filters by and logs."""

    rewards: list[float]
    scores: list[float] = Field(description="P(reward > threshold), between 0 and 1, for dynamic filtering.")
    extra_logs: dict[str, list[float]] = Field(description="Numbers that the trainer logs.")


class RewardsAlone(BaseModel):
    """The older form."""

    rewards: list[float]


@router.post("/get_reward", responses=OF_A_POST)
async def get_reward(
    body: GetRewardBody, address: FromAddress, served: ServedModels, record: Record
) -> FullAnswer | RewardsAlone:
    """Rewards of whole texts, in the form that OpenRLHF reads."""
    penalty = penalty_of(served, address, body)
    call = call_of(served, record, address, body)
    has_variance = body.form == "full" or penalty.kind != "none"
    found = await call.score_text(body.query, add_special_tokens=False, variance=has_variance)
    rewards = rewards_of(penalty, found.mean, found.std)
    if body.form == "rewards" or found.std is None:
        return RewardsAlone(rewards=rewards)
    threshold = served.options.threshold if body.threshold is None else body.threshold
    chances = [probability_above(threshold, *one) for one in zip(found.mean, found.std, strict=True)]
    logs = {
        "reward_mean": found.mean,
        "reward_std": found.std,
        "reward_truncated": [float(cut) for cut in found.truncated],
    }
    return FullAnswer(rewards=rewards, scores=chances, extra_logs=logs)
