"""LlamaFactory's PPO with `reward_model_type: api`, and its own server's score route."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from bayesrm_fast.serve.answers import OF_A_POST
from bayesrm_fast.serve.protocols.fields import DropInFields, FromAddress, call_of, penalty_of, rewards_of
from bayesrm_fast.serve.served import Record, ServedModels

router = APIRouter(tags=["drop-in: LlamaFactory"])


class ScoreBody(DropInFields):
    """What LlamaFactory sends. Its trainer calls every model `model`, which then is the one of the address."""

    messages: list[str] = Field(
        description="Whole texts, decoded with their special tokens; tokenized as they stand.",
        examples=[["<s>What is 2 + 2?\n\nIt is 4.</s>"]],
    )


class ScoreAnswer(BaseModel):
    """Rewards, with the std that LlamaFactory does not read."""

    id: str
    object: Literal["score.evaluation"] = "score.evaluation"
    model: str
    scores: list[float]
    std: list[float]


@router.post("/v1/score/evaluation", responses=OF_A_POST)
async def score(body: ScoreBody, address: FromAddress, served: ServedModels, record: Record) -> ScoreAnswer:
    """Rewards of whole texts."""
    penalty = penalty_of(served, address, body)
    if body.model == "model" and "model" not in served.scorers:
        body.model = None
    call = call_of(served, record, address, body)
    found = await call.score_text(body.messages, add_special_tokens=False)
    std = found.std or []
    rewards = rewards_of(penalty, found.mean, std)
    return ScoreAnswer(id=f"scoreeval-{record.request_id}", model=call.model, scores=rewards, std=std)
