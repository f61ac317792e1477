"""The server's own routes: what the posterior knows of a prompt's responses."""

import asyncio
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bayesrm_fast.errors import InputError
from bayesrm_fast.score.joint import DRAWS, JointRewards
from bayesrm_fast.select.named_rules import description_of, rule_of
from bayesrm_fast.select.rules import Rule, parameters_of
from bayesrm_fast.serve.answers import OF_A_GET, OF_A_POST
from bayesrm_fast.serve.served import Call, Record, Served, ServedModels

router = APIRouter(tags=["native"])

MOST_DRAWS_HERE = DRAWS
"""That a rule may ask for; a sixteenth of `MOST_DRAWS`, because the thread that owns the model makes them and everybody
else waits: these take a CPU core a second for 256 candidates."""


class Message(BaseModel):
    """One message of a conversation, with whatever else its chat template reads."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str = Field(examples=["user"])
    content: str | list[dict[str, Any]] | None = Field(None, examples=["What is 2 + 2?"])


Conversation = Annotated[list[Message], Field(min_length=1)]
Given = str | Conversation


def as_text(given: Given) -> Any:
    """A string, or messages as mappings, of what they were given with."""
    return given if isinstance(given, str) else [message.model_dump(exclude_unset=True) for message in given]


class Asked(BaseModel):
    """A prompt with its responses."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="Name of the model, as `/v1/models` has it. Default: the first.")
    prompt: str | None = Field(None, description="The prompt, as text.", examples=["What is 2 + 2?"])
    messages: Conversation | None = Field(None, description="The prompt, as a conversation; in place of `prompt`.")
    responses: Annotated[list[Given], Field(min_length=1)] = Field(
        description="What answers the prompt: texts, or lists of messages.", examples=[["It is 4.", "It is 5."]]
    )

    @model_validator(mode="after")
    def has_one_prompt(self) -> Self:
        """Refuse none and both."""
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages, one of them")
        return self

    @property
    def prompt_text(self) -> Any:
        """The prompt, whichever it was given as."""
        return self.prompt if self.messages is None else as_text(self.messages)

    @property
    def response_texts(self) -> list[Any]:
        """The responses."""
        return [as_text(response) for response in self.responses]

    def call(self, served: Served, record: Record) -> Call:
        """The request's way to its model; it does not wait where the queue is full."""
        return Call(served, record, self.model, has_patience=False)


class RewardsAsked(Asked):
    """A prompt with responses to score."""

    relative: Literal["prompt"] | Annotated[list[Given], Field(min_length=1)] | None = Field(
        None,
        description="What mean and std are of the difference to: `prompt` for the mean of these responses, or a "
        "reference for each of them, such as a greedy answer. Default: nothing; they are the rewards' own.",
    )
    variance: bool = Field(True, description="`false` for means alone, which take no backward pass; std is null then.")

    @model_validator(mode="after")
    def is_relative_with_variance(self) -> Self:
        """Refuse differences of means alone, which a client can subtract by itself."""
        if self.relative is not None and not self.variance:
            raise ValueError("relative goes with variances: leave one of them out")
        return self


class BestOfNAsked(Asked):
    """A prompt with candidates to choose among."""

    rule: str | dict[str, Any] = Field(
        "std",
        description="A rule by its name, or by its description with parameters; docs/rules.md has them all.",
        examples=["std", {"rule": "soft", "temperature": 0.2}],
    )
    k: float | None = Field(
        None, ge=0, description="Weight of the penalty of a rule that is given by its name. Default: the rule's own."
    )
    relative: bool = Field(True, description="Whether mean and std are of the difference to the candidates' mean.")
    log_probabilities: list[float] | None = Field(
        None, description="Of each response under the policy that wrote it, for rules that read them."
    )
    similarities: list[list[float]] | None = Field(
        None, description="Of each response to every other, for rules that read them."
    )


class Usage(BaseModel):
    """Tokens that were read, after rows were cut."""

    prompt_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, tokens: Sequence[int]) -> Self:
        """Of these rows."""
        return cls(prompt_tokens=sum(tokens), total_tokens=sum(tokens))


class Reward(BaseModel):
    """What is known of one response."""

    mean: float = Field(description="The reward, or its difference to the baseline.", examples=[1.25])
    std: float | None = Field(
        description="Posterior std of the same; null where a choice had no need of it, or nobody asked."
    )
    tokens: int = Field(description="Of prompt and response, after they were cut.")
    truncated: bool = Field(description="Whether they were cut.")
    baseline: float | None = Field(None, description="What mean and std are of the difference to; null for nothing.")


class ScoredReward(Reward):
    """The same, with what a rule has made of it."""

    score: float | None = Field(description="By the rule; the probability of being drawn where it draws.")


class Answer(BaseModel):
    """What every answer has."""

    id: str = Field(description="The request's id, as in `X-Request-Id`.")
    model: str
    usage: Usage


class RewardsAnswer(Answer):
    """Rewards in the order of the responses."""

    rewards: list[Reward]


class BestOfNAnswer(Answer):
    """The choice, and what it was made by."""

    index: int = Field(description="Of the chosen response, from 0.")
    rule: dict[str, Any] = Field(description="By which it was chosen, with all of its parameters.")
    candidates: list[ScoredReward]


class CovarianceAnswer(Answer):
    """The joint Gaussian over the rewards of the candidates, and what follows from it."""

    mean: list[float]
    covariance: list[list[float]] = Field(description="In squared units of the reward.")
    relative_std: list[float] = Field(description="Std of the differences to the candidates' mean.")
    probability_of_being_best: list[float]
    expected_regret: list[float] = Field(description="What choosing a candidate is expected to lose.")
    preference_probability: list[list[float]] = Field(description="Of row i over column j.")
    sketch_error: float | None = Field(description="Relative error of a sketched covariance; null where it is exact.")
    tokens: list[int]
    truncated: list[bool]


class ModelCard(BaseModel):
    """One model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "bayesrm_fast"
    max_model_len: int = Field(description="Tokens at which a row is cut.")
    posterior: str = Field(description="Structure of its posterior.")
    tuned_k: float | None = Field(description="Weight of the std that judged responses have chosen; null if none did.")


class ModelList(BaseModel):
    """The models of this server, the one that is asked by default first."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@router.post("/v1/rewards", responses=OF_A_POST)
async def rewards(asked: RewardsAsked, served: ServedModels, record: Record) -> RewardsAnswer:
    """Mean and std of the reward of every response to a prompt."""
    call = asked.call(served, record)
    relative = asked.relative
    relative_to = [as_text(one) for one in relative] if isinstance(relative, list) else relative
    found = await call.score(asked.prompt_text, asked.response_texts, relative_to, variance=asked.variance)
    absent = [None] * len(found.mean)
    rows = zip(found.mean, found.std or absent, found.tokens, found.truncated, found.baseline or absent, strict=True)
    return RewardsAnswer(
        id=record.request_id,
        model=call.model,
        rewards=[
            Reward(mean=mean, std=std, tokens=tokens, truncated=truncated, baseline=baseline)
            for mean, std, tokens, truncated, baseline in rows
        ],
        usage=Usage.of(found.tokens),
    )


@router.post("/v1/best_of_n", responses=OF_A_POST)
async def best_of_n(asked: BestOfNAsked, served: ServedModels, record: Record) -> BestOfNAnswer:
    """The best response to a prompt, by its reward less what is not known of it, or by another rule."""
    call = asked.call(served, record)
    rule = rule_of(asked.rule, asked.k)
    _check_draws(rule)
    found = await call.best_of_n(
        asked.prompt_text, asked.response_texts, rule, asked.relative, asked.log_probabilities, asked.similarities
    )
    stds = [math.sqrt(variance) for variance in found.variance.tolist()]
    tokens = found.tokens.tolist()
    rows = zip(found.scores.tolist(), found.mean.tolist(), stds, tokens, found.truncated.tolist(), strict=True)
    return BestOfNAnswer(
        id=record.request_id,
        model=call.model,
        index=found.index,
        rule=description_of(rule),
        candidates=[
            ScoredReward(
                score=_or_null(score),
                mean=mean,
                std=_or_null(std),
                tokens=count,
                truncated=truncated,
                baseline=found.baseline,
            )
            for score, mean, std, count, truncated in rows
        ],
        usage=Usage.of(tokens),
    )


@router.post("/v1/covariance", responses=OF_A_POST)
async def covariance(asked: Asked, served: ServedModels, record: Record) -> CovarianceAnswer:
    """The joint posterior of a prompt's candidates: who is how probably the best, and what a choice may cost."""
    call = asked.call(served, record)
    joint = await call.covariance(asked.prompt_text, asked.response_texts)
    known = await asyncio.to_thread(_known, joint)  # draws take longer than an event loop may stand still
    return CovarianceAnswer(
        id=record.request_id,
        model=call.model,
        **known,
        sketch_error=joint.sketch_error,
        tokens=joint.tokens.tolist(),
        truncated=joint.truncated.tolist(),
        usage=Usage.of(joint.tokens.tolist()),
    )


@router.get("/v1/models", responses=OF_A_GET)
async def models(served: ServedModels) -> ModelList:
    """The models that this server has."""
    cards = []
    for name, scorer in served.scorers.items():
        posterior = scorer.rm.fitted
        cards.append(
            ModelCard(
                id=name,
                created=served.started,
                max_model_len=scorer.rm.encoder.max_length,
                posterior=posterior.record.structure,
                tuned_k=None if posterior.penalty is None else posterior.penalty.k,
            )
        )
    return ModelList(data=cards)


def _known(joint: JointRewards) -> dict[str, Any]:
    return {
        "mean": joint.mean.tolist(),
        "covariance": joint.covariance.tolist(),
        "relative_std": joint.relative().covariance.diagonal().sqrt().tolist(),
        "probability_of_being_best": joint.probability_of_being_best().tolist(),
        "expected_regret": joint.expected_regret().tolist(),
        "preference_probability": joint.preference_probability().tolist(),
    }


def _check_draws(rule: Rule) -> None:
    """Refuse a rule for which the model would stand still."""
    if getattr(rule, "draws", 0) > MOST_DRAWS_HERE:
        raise InputError(f"draws must be at most {MOST_DRAWS_HERE} here: the model waits for them")
    for part in (getattr(rule, name) for name in parameters_of(rule)):
        if isinstance(part, Rule):
            _check_draws(part)


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
