"""SGLang's `/classify` for reward models, and the `/v1/embeddings` by which verl asks it."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from bayesrm_fast.serve.answers import OF_A_POST
from bayesrm_fast.serve.protocols.fields import DropInFields, FromAddress, call_of, penalty_of, rewards_of
from bayesrm_fast.serve.served import Record, Served, ServedModels

router = APIRouter(tags=["drop-in: SGLang"])


class TextBody(DropInFields):
    """SGLang's form of `/classify`: the reward is the one number of each embedding."""

    text: str | list[str] = Field(description="Templated texts without a BOS token.", examples=["What is 2 + 2? 4."])


class MetaInfo(BaseModel):
    """What SGLang tells beside a result; the std stands here."""

    id: str
    prompt_tokens: int
    std: float
    truncated: bool


class TextAnswer(BaseModel):
    """One text's reward."""

    embedding: list[float]
    meta_info: MetaInfo


class EmbeddingsBody(DropInFields):
    """What verl sends to an SGLang reward model."""

    input: str | list[str] = Field(description="Templated texts without a BOS token.", examples=["What is 2 + 2? 4."])


class Embedding(BaseModel):
    """One text's reward as an embedding of one number."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float]
    std: float


class EmbeddingsUsage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingsUsage


async def classify_text(
    body: TextBody, address: FromAddress, served: Served, record: Record
) -> TextAnswer | list[TextAnswer]:
    """Rewards of texts: a list for a list."""
    penalty = penalty_of(served, address, body)
    call = call_of(served, record, address, body)
    texts = [body.text] if isinstance(body.text, str) else body.text
    found = await call.score_text(texts, add_special_tokens=True)
    std = found.std or []
    rewards = rewards_of(penalty, found.mean, std)
    rows = zip(rewards, std, found.tokens, found.truncated, strict=True)
    answers = [
        TextAnswer(
            embedding=[value],
            meta_info=MetaInfo(id=record.request_id, prompt_tokens=tokens, std=spread, truncated=truncated),
        )
        for value, spread, tokens, truncated in rows
    ]
    return answers[0] if isinstance(body.text, str) else answers


@router.post("/v1/embeddings", responses=OF_A_POST)
async def embeddings(
    body: EmbeddingsBody, address: FromAddress, served: ServedModels, record: Record
) -> EmbeddingsAnswer:
    """Rewards of texts, each as an embedding of one number."""
    penalty = penalty_of(served, address, body)
    call = call_of(served, record, address, body)
    texts = [body.input] if isinstance(body.input, str) else body.input
    found = await call.score_text(texts, add_special_tokens=True)
    std = found.std or []
    rewards = rewards_of(penalty, found.mean, std)
    return EmbeddingsAnswer(
        model=call.model,
        data=[
            Embedding(index=i, embedding=[value], std=spread)
            for i, (value, spread) in enumerate(zip(rewards, std, strict=True))
        ],
        usage=EmbeddingsUsage(prompt_tokens=sum(found.tokens), total_tokens=sum(found.tokens)),
    )
