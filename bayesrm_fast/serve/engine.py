"""Requests of many tasks and threads, scored in shared batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor

from bayesrm_fast.reward_model import BayesianRewardModel
from bayesrm_fast.score.joint import JointRewards
from bayesrm_fast.score.variances import RewardScores
from bayesrm_fast.select.choice import BestOfN
from bayesrm_fast.select.rules import Rule
from bayesrm_fast.text.texts import Text


class QueueFull(Exception):
    """There is no room for a request that would not wait.

    Attributes:
        retry_after: seconds in which what waits is done, at the speed of late.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineClosed(Exception):
    """The engine takes no request any more, or ended before it had served this one."""


@dataclass(frozen=True)
class EngineStats:
    """What an engine has done since it was made; queue_tokens and queued_requests are of now.

    Attributes:
        queue_tokens: that wait.
        queued_requests: of which nothing has run yet.
        batches: that the model was run on.
        batch_tokens: of all of them, padding included.
        padding: share of these that is padding.
        refused: requests by `QueueFull`.
        cancelled: requests.
        bisections: of batches that failed.
        memory_halvings: of the token budget, where memory ran out.
        seconds: in passes over the model.
    """

    queue_tokens: int
    queued_requests: int
    batches: int
    batch_tokens: int
    padding: float
    refused: int
    cancelled: int
    bisections: int
    memory_halvings: int
    seconds: float


class AsyncScorer:
    """Scores requests of any number of tasks and threads in shared batches; one thread owns the model."""

    def __init__(
        self,
        rm: BayesianRewardModel,
        *,
        max_batch_tokens: int | None = None,
        max_wait_ms: float = 2.0,
        max_queue_tokens: int = 1_000_000,
    ) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(self, *error: object) -> None:
        raise NotImplementedError

    async def rewards(self, prompt: Text, responses: Sequence[Text], *, wait: bool = True) -> Tensor:
        """MAP rewards `[n]`."""
        raise NotImplementedError

    async def score(
        self,
        prompt: Text,
        responses: Sequence[Text],
        *,
        relative_to: Literal["prompt"] | Sequence[Text] | None = None,
        wait: bool = True,
    ) -> RewardScores:
        """Rewards and variances."""
        raise NotImplementedError

    async def best_of_n(
        self,
        prompt: Text,
        responses: Sequence[Text],
        rule: str | Mapping[str, Any] | Rule = "std",
        k: float | Literal["tuned"] = 1.0,
        *,
        relative: bool = True,
        log_probabilities: Sequence[float] | None = None,
        similarities: Sequence[Sequence[float]] | None = None,
        wait: bool = True,
    ) -> BestOfN:
        """The best by a rule."""
        raise NotImplementedError

    async def covariance(self, prompt: Text, responses: Sequence[Text], *, wait: bool = True) -> JointRewards:
        """The joint posterior."""
        raise NotImplementedError

    async def score_text(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, variance: bool = True, wait: bool = True
    ) -> RewardScores:
        """Rewards of texts that are rendered already."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """What the engine has done."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Finish what was accepted, refuse what is new."""
        raise NotImplementedError

    async def close(self) -> None:
        """Refuse and cancel what waits, end the thread."""
        raise NotImplementedError
