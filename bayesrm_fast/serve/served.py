"""The models of a server, and a request's way to them."""

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeVar

from fastapi import Depends, Request

from bayesrm_fast.errors import InputError, named, shortened
from bayesrm_fast.model.token_budget import is_out_of_memory
from bayesrm_fast.score.joint import JointRewards
from bayesrm_fast.score.variances import RewardScores
from bayesrm_fast.select.choice import BestOfN
from bayesrm_fast.select.rules import Rule
from bayesrm_fast.serve.answers import ApiError, busy
from bayesrm_fast.serve.engine import AsyncScorer
from bayesrm_fast.serve.logs import RequestRecord
from bayesrm_fast.serve.metrics import Metrics
from bayesrm_fast.serve.options import ServerOptions
from bayesrm_fast.text.texts import Text

T = TypeVar("T", RewardScores, BestOfN, JointRewards)


@dataclass(frozen=True)
class Scored:
    """What a request's rows were worth, in the order in which it gave them.

    Attributes:
        mean: rewards.
        std: None where it was not asked for.
        tokens: of each row, after it was cut.
        truncated: which rows were cut.
        baseline: what mean and std are of the difference to; None where they are the rewards' own.
    """

    mean: list[float]
    std: list[float] | None
    tokens: list[int]
    truncated: list[bool]
    baseline: list[float] | None = None

    @classmethod
    def of(cls, found: RewardScores, has_variance: bool) -> Self:
        """As a model gives them."""
        return cls(
            found.mean.tolist(),
            found.std.tolist() if has_variance else None,
            found.tokens.tolist(),
            found.truncated.tolist(),
            None if found.baseline is None else found.baseline.tolist(),
        )


class Served:
    """The models of a server by their names, the first of which is asked where a request names none.

    Args:
        scorers: at least one.
        options: of the server.

    Raises:
        InputError: no model.

    Attributes:
        metrics: what is counted.
        is_warm: whether every model has scored something.
        started: when, in seconds since 1970.
    """

    def __init__(self, scorers: Mapping[str, AsyncScorer], options: ServerOptions) -> None:
        if not scorers:
            raise InputError("there is no model to serve")
        self.scorers = dict(scorers)
        self.options = options
        self.metrics = Metrics(self.scorers)
        self.is_warm = False
        self.started = int(time.time())

    @property
    def is_ready(self) -> bool:
        """Whether every model scores."""
        return self.is_warm and all(scorer.accepts for scorer in self.scorers.values())


class Call:
    """One request's way to one model.

    Args:
        served: the models.
        record: what is logged of the request.
        model: name of the model; None for the first.
        has_patience: whether it waits where the queue is full, and for how long at most for its answer.

    Raises:
        ApiError: 404 where there is no such model.
    """

    def __init__(self, served: Served, record: RequestRecord, model: str | None, has_patience: bool) -> None:
        self.served = served
        self.options = served.options
        self.record = record
        self.model = next(iter(served.scorers)) if model is None else model
        if self.model not in served.scorers:
            there = named(list(served.scorers))
            raise ApiError(404, f"there is no model {shortened(self.model)!r}; there are: {there}")
        record.model = self.model
        self.scorer = served.scorers[self.model]
        self.has_patience = has_patience

    async def score_text(
        self, texts: Sequence[str] | Sequence[Sequence[int]], *, add_special_tokens: bool, variance: bool = True
    ) -> Scored:
        """Rewards of texts that are rendered already, or of token ids; with their std where `variance` is asked for."""
        self._check_count(len(texts))
        if not texts:
            return Scored([], [] if variance else None, [], [])
        asked = self.scorer.score_text(
            texts, add_special_tokens=add_special_tokens, variance=variance, wait=self.has_patience
        )
        return Scored.of(await self._counted(asked, variance), variance)

    async def score(
        self,
        prompt: Text,
        responses: Sequence[Text],
        relative_to: Literal["prompt"] | Sequence[Text] | None = None,
        *,
        variance: bool = True,
    ) -> Scored:
        """Rewards of a prompt's responses, with their std where `variance` is asked for."""
        self._check_count(len(responses))
        asked = self.scorer.score(prompt, responses, relative_to=relative_to, variance=variance, wait=self.has_patience)
        return Scored.of(await self._counted(asked, variance), variance)

    async def score_rows(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Scored:
        """Rewards and std of `responses[i]` to `prompts[i]`."""
        self._check_count(len(responses))
        asked = self.scorer.score_rows(prompts, responses, wait=self.has_patience)
        return Scored.of(await self._counted(asked), True)

    async def best_of_n(
        self,
        prompt: Text,
        responses: Sequence[Text],
        rule: Rule,
        relative: bool,
        log_probabilities: Sequence[float] | None,
        similarities: Sequence[Sequence[float]] | None,
    ) -> BestOfN:
        """The best of a prompt's responses by a rule."""
        self._check_count(len(responses))
        return await self._counted(
            self.scorer.best_of_n(
                prompt,
                responses,
                rule,
                relative=relative,
                log_probabilities=log_probabilities,
                similarities=similarities,
                wait=self.has_patience,
            )
        )

    async def covariance(self, prompt: Text, responses: Sequence[Text]) -> JointRewards:
        """The joint posterior of a prompt's responses."""
        self._check_count(len(responses))
        return await self._counted(self.scorer.covariance(prompt, responses, wait=self.has_patience))

    async def _counted(self, asked: Awaitable[T], has_variance: bool = True) -> T:
        """An answer, whose rows are counted; 503 where a client that waits would give up before it came."""
        try:
            async with asyncio.timeout(self.options.patience if self.has_patience else None):
                found = await asked
        except TimeoutError as error:
            raise busy(f"no answer within {self.options.patience:g} s: the queue is too long", 5) from error
        except Exception as error:
            if is_out_of_memory(error):
                raise busy("a row of the request needs more memory than there is", 5) from error
            raise
        rows, tokens = len(found.tokens), int(found.tokens.sum())
        self.record.rows += rows
        self.record.tokens += tokens
        self.served.metrics.scored(self.model, rows, tokens, has_variance)
        return found

    def _check_count(self, count: int) -> None:
        most = self.options.max_responses
        if count > most:
            raise InputError(f"the request has {count} texts to score, and at most {most} are taken in one")


def served_of(request: Request) -> Served:
    """The models of the app that a request has come to."""
    served: Served = request.app.state.served
    return served


def record_of(request: Request) -> RequestRecord:
    """What is logged of a request."""
    record: RequestRecord = request.scope["record"]
    return record


ServedModels = Annotated[Served, Depends(served_of)]
Record = Annotated[RequestRecord, Depends(record_of)]
