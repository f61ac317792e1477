"""slime's `--rm-type remote_rm --rm-url http://…/reward`: one sample, and a bare number for it."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from bayesrm_fast.serve.answers import OF_A_POST
from bayesrm_fast.serve.native import Given, as_text
from bayesrm_fast.serve.protocols.fields import DropInFields, RewardFields, call_of, penalty_of, rewards_of
from bayesrm_fast.serve.served import Record, ServedModels

router = APIRouter(tags=["drop-in: slime"])

Form = Literal["number", "dict"]
Prompts = Literal["rendered", "plain"]


class RewardBody(DropInFields):
    """What slime sends. `label` is taken and not read."""

    prompt: Given = Field(description="Messages, or a text.", examples=["<s>What is 2 + 2?\n\n"])
    response: str = Field(examples=["It is 4."])
    label: Any = None


class RewardAddress(RewardFields):
    """What slime's address may say, since its body has no room."""

    form: Form = Field("number", description="`dict` for all that is known: give slime `--reward-key reward`.")
    prompts: Prompts = Field(
        "rendered",
        description="Whether a prompt that is a text has been through a chat template, and is tokenized with its "
        "response as they stand, or is `plain` and joined with it as the model joins them. Messages always are.",
    )


class RewardDict(BaseModel):
    """One sample's reward, and what is known of it."""

    reward: float
    mean: float
    std: float
    tokens: int
    truncated: bool


@router.post("/reward", responses=OF_A_POST)
async def reward(
    body: RewardBody, address: Annotated[RewardAddress, Query()], served: ServedModels, record: Record
) -> float | RewardDict:
    """The reward of one sample."""
    penalty = penalty_of(served, address, body)
    call = call_of(served, record, address, body)
    is_mean_alone = address.form == "number" and penalty.kind == "none"
    if isinstance(body.prompt, str) and address.prompts == "rendered":
        text = body.prompt + body.response
        found = await call.score_text([text], add_special_tokens=False, variance=not is_mean_alone)
    else:
        prompt = as_text(body.prompt)
        response: Any = body.response if isinstance(prompt, str) else [{"role": "assistant", "content": body.response}]
        found = await call.score(prompt, [response], variance=not is_mean_alone)
    (value,) = rewards_of(penalty, found.mean, found.std)
    if found.std is None or address.form == "number":
        return value
    return RewardDict(
        reward=value, mean=found.mean[0], std=found.std[0], tokens=found.tokens[0], truncated=found.truncated[0]
    )
