"""vLLM's routes for sequence classifiers with one label: `/classify`, `/pooling`, `/score` and `/rerank`."""

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import AliasChoices, BaseModel, Discriminator, Field, Tag

from bayesrm_fast.errors import InputError
from bayesrm_fast.serve.answers import OF_A_POST
from bayesrm_fast.serve.native import Conversation, as_text
from bayesrm_fast.serve.protocols.fields import (
    DropInFields,
    FromAddress,
    RewardFields,
    call_of,
    penalty_of,
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


TokenId = Annotated[int, Field(ge=0)]


class InputBody(Activated):
    """Texts, templated already, or their token ids."""

    input: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(
        description="One text or several, or the token ids of one or several.",
        examples=["What is 2 + 2?\n\nIt is 4."],
    )
    add_special_tokens: bool = Field(True, description="Whether the tokenizer adds its special tokens to texts.")

    @property
    def rows(self) -> Sequence[str] | Sequence[Sequence[int]]:
        """The texts, or their token ids."""
        is_one = isinstance(self.input, str) or (self.input and isinstance(self.input[0], int))
        return [self.input] if is_one else self.input  # type: ignore[return-value]


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


Several = str | Annotated[list[str], Field(min_length=1)]


class ScoreBody(Activated):
    """Prompts with their responses: as many of each, or one prompt for all."""

    prompts: Several = Field(
        validation_alias=AliasChoices("queries", "text_1", "data_1"),
        description="Prompts; `text_1` and `data_1` are other names of theirs.",
        examples=["What is 2 + 2?"],
    )
    responses: Several = Field(
        validation_alias=AliasChoices("documents", "items", "text_2", "data_2"),
        description="Responses; `items`, `text_2` and `data_2` are other names of theirs.",
        examples=[["It is 4.", "It is 5."]],
    )

    @property
    def rows(self) -> tuple[list[str], list[str]]:
        """The prompt of each response, and the responses.

        Raises:
            InputError: neither one prompt nor as many as responses.
        """
        prompts, responses = ([one] if isinstance(one, str) else one for one in (self.prompts, self.responses))
        if len(prompts) not in (1, len(responses)):
            raise InputError(f"there are {len(prompts)} prompts for {len(responses)} responses: give one, or as many")
        return (prompts * len(responses) if len(prompts) == 1 else prompts), responses


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


class ScoreResult(BaseModel):
    """One response's reward, as above."""

    index: int
    object: Literal["score"] = "score"
    score: float
    std: float


class ScoreAnswer(Listed):
    """The answer of `/score`."""

    data: list[ScoreResult]
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
    penalty = penalty_of(served, address, body)
    call = call_of(served, record, address, body)
    if isinstance(body, InputBody):
        found = await call.score_text(body.rows, add_special_tokens=body.add_special_tokens)
    else:
        *prompt, response = as_text(body.messages)
        if not prompt or response["role"] != "assistant":
            raise InputError("messages must hold a prompt, and end with the assistant's response, which is scored")
        found = await call.score(prompt, [[response]])
    std = found.std or []
    rewards = [body.activated(reward) for reward in rewards_of(penalty, found.mean, std)]
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


@router.post("/score", responses=OF_A_POST)
@router.post("/v1/score", responses=OF_A_POST)
async def score(body: ScoreBody, address: FromAddress, served: ServedModels, record: Record) -> ScoreAnswer:
    """Rewards of responses to their prompts, which are joined as the model joins them."""
    penalty = penalty_of(served, address, body)
    call = call_of(served, record, address, body)
    found = await call.score_rows(*body.rows)
    std = found.std or []
    rewards = rewards_of(penalty, found.mean, std)
    return ScoreAnswer(
        id=f"score-{record.request_id}",
        created=int(time.time()),
        model=call.model,
        data=[
            ScoreResult(index=i, score=body.activated(reward), std=spread)
            for i, (reward, spread) in enumerate(zip(rewards, std, strict=True))
        ],
        usage=_usage(found),
    )


@router.post("/rerank", responses=OF_A_POST)
@router.post("/v1/rerank", responses=OF_A_POST)
@router.post("/v2/rerank", responses=OF_A_POST)
async def rerank(body: RerankBody, address: FromAddress, served: ServedModels, record: Record) -> RerankAnswer:
    """The documents that answer the query best, by their reward."""
    penalty = penalty_of(served, address, body)
    call = call_of(served, record, address, body)
    found = await call.score(body.query, body.documents)
    std = found.std or []
    rewards = rewards_of(penalty, found.mean, std)
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
