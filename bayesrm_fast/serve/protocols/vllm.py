"""vLLM's routes for sequence classifiers with one label: `/classify`, `/pooling` and `/rerank`."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Discriminator, Field, Tag

from bayesrm_fast.errors import InputError
from bayesrm_fast.serve.answers import OF_A_POST
from bayesrm_fast.serve.native import Conversation, as_text
from bayesrm_fast.serve.protocols.fields import (
    DropInFields,
    FromAddress,
    RewardFields,
    call_of,
    reward_of,
    rewards_of,
    sigmoid,
)
from bayesrm_fast.serve.protocols.sglang import TextAnswer, TextBody, classify_text
from bayesrm_fast.serve.served import Record, Scored, Served, ServedModels

router = APIRouter(tags=["drop-in: vLLM"])

LABEL = "LABEL_0"
"""What transformers calls the only label of a model."""


class Activated(DropInFields):
    """What vLLM's routes have in common; a text that is longer than the model takes is always cut."""

    use_activation: bool | None = Field(
        None, description="`false` for the reward itself; otherwise its sigmoid, as vLLM gives for one label."
    )

    def activated(self, reward: float) -> float:
        """What vLLM would give for a reward."""
        return reward if self.use_activation is False else sigmoid(reward)


class InputBody(Activated):
    """Texts, templated already."""

    input: str | list[str] = Field(description="One text or several.", examples=["What is 2 + 2?\n\nIt is 4."])
    add_special_tokens: bool = Field(True, description="Whether the tokenizer adds its special tokens.")


class MessagesBody(Activated):
    """A conversation that ends with the response."""

    messages: Conversation = Field(
        examples=[[{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]]
    )


class PoolingInput(InputBody):
    """The same for `/pooling`."""

    task: Literal["classify"] | None = Field(None, description="A reward model has no other.")


class PoolingMessages(MessagesBody):
    """The same for `/pooling`."""

    task: Literal["classify"] | None = Field(None, description="A reward model has no other.")


class RerankBody(Activated):
    """A prompt as the query, and responses as the documents."""

    query: str = Field(examples=["What is 2 + 2?"])
    documents: Annotated[list[str], Field(min_length=1)] = Field(examples=[["It is 4.", "It is 5."]])
    top_n: int = Field(0, ge=0, description="How many are answered; 0 for all.")


def _form(body: Any) -> str:
    """Which of the forms of `/classify` a body is in."""
    fields = body if isinstance(body, dict) else {}
    found = next((name for name in ("messages", "text") if name in fields and "input" not in fields), "input")
    return f"({found})"  # no field's name, so that errors do not show it as one


ClassifyBody = Annotated[
    Annotated[InputBody, Tag("(input)")]
    | Annotated[MessagesBody, Tag("(messages)")]
    | Annotated[TextBody, Tag("(text)")],
    Discriminator(_form),
]
PoolingBody = Annotated[
    Annotated[PoolingInput, Tag("(input)")] | Annotated[PoolingMessages, Tag("(messages)")], Discriminator(_form)
]


class Usage(BaseModel):
    """Tokens that were read, after texts were cut."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class ClassifyResult(BaseModel):
    """One text's reward; the std, which vLLM has no field for, is in units of the reward itself."""

    index: int
    label: str = LABEL
    probs: list[float]
    num_classes: int = 1
    std: float


class PoolingResult(BaseModel):
    """One text's reward, as above."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float]
    std: float


class Listed(BaseModel):
    """What vLLM's answers begin with."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str


class ClassifyAnswer(Listed):
    """The answer of `/classify`."""

    data: list[ClassifyResult]
    usage: Usage


class PoolingAnswer(Listed):
    """The answer of `/pooling`."""

    data: list[PoolingResult]
    usage: Usage


class Document(BaseModel):
    """A document as it was given."""

    text: str


class RerankResult(BaseModel):
    """One document's reward as an answer to the query."""

    index: int
    document: Document
    relevance_score: float
    std: float


class RerankAnswer(BaseModel):
    """The best documents, the first before all."""

    id: str
    model: str
    usage: Usage
    results: list[RerankResult]


async def _found(
    body: InputBody | MessagesBody, address: RewardFields, served: Served, record: Record
) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """Activated rewards with their std, and the rest of an answer."""
    choice = reward_of(served, address, body)
    call = call_of(served, record, address, body)
    if isinstance(body, InputBody):
        texts = [body.input] if isinstance(body.input, str) else body.input
        found = await call.score_text(texts, add_special_tokens=body.add_special_tokens)
    else:
        *prompt, response = as_text(body.messages)
        if not prompt or response["role"] != "assistant":
            raise InputError("messages must hold a prompt, and end with the assistant's response, which is scored")
        found = await call.score(prompt, [[response]])
    std = found.std or []
    rewards = [body.activated(reward) for reward in rewards_of(choice, found.mean, std)]
    rest = {"created": int(time.time()), "model": call.model, "usage": _usage(found)}
    return list(zip(rewards, std, strict=True)), rest


def _usage(found: Scored) -> Usage:
    return Usage(prompt_tokens=sum(found.tokens), total_tokens=sum(found.tokens))


@router.post("/classify", responses=OF_A_POST)
async def classify(
    body: ClassifyBody, address: FromAddress, served: ServedModels, record: Record
) -> ClassifyAnswer | TextAnswer | list[TextAnswer]:
    """Rewards as class probabilities: vLLM's form with `input` or `messages`, SGLang's with `text`."""
    if isinstance(body, TextBody):
        return await classify_text(body, address, served, record)
    rows, rest = await _found(body, address, served, record)
    data = [ClassifyResult(index=i, probs=[reward], std=std) for i, (reward, std) in enumerate(rows)]
    return ClassifyAnswer(id=f"classify-{record.request_id}", data=data, **rest)


@router.post("/pooling", responses=OF_A_POST)
async def pooling(body: PoolingBody, address: FromAddress, served: ServedModels, record: Record) -> PoolingAnswer:
    """Rewards as pooled outputs."""
    rows, rest = await _found(body, address, served, record)
    data = [PoolingResult(index=i, data=[reward], std=std) for i, (reward, std) in enumerate(rows)]
    return PoolingAnswer(id=f"pool-{record.request_id}", data=data, **rest)


@router.post("/rerank", responses=OF_A_POST)
@router.post("/v1/rerank", responses=OF_A_POST)
@router.post("/v2/rerank", responses=OF_A_POST)
async def rerank(body: RerankBody, address: FromAddress, served: ServedModels, record: Record) -> RerankAnswer:
    """The documents that answer the query best, by their reward."""
    choice = reward_of(served, address, body)
    call = call_of(served, record, address, body)
    found = await call.score(body.query, body.documents)
    std = found.std or []
    rewards = rewards_of(choice, found.mean, std)
    order = sorted(range(len(rewards)), key=lambda i: -rewards[i])[: body.top_n or None]
    results = [
        RerankResult(
            index=i,
            document=Document(text=body.documents[i]),
            relevance_score=body.activated(rewards[i]),
            std=std[i],
        )
        for i in order
    ]
    return RerankAnswer(id=f"rerank-{record.request_id}", model=call.model, usage=_usage(found), results=results)
