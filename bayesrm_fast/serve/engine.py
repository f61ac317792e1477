"""Requests of many tasks and threads, scored in shared batches."""

import asyncio
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.reward_model import BayesianRewardModel
from bayesrm_fast.score.joint import JointRewards
from bayesrm_fast.score.variances import RewardScores
from bayesrm_fast.select.checks import at_least, whole
from bayesrm_fast.select.choice import BestOfN
from bayesrm_fast.select.rules import Rule
from bayesrm_fast.serve.requests import EngineClosed, QueueFull
from bayesrm_fast.serve.texts import Rendered, Responses, Rows, Texts
from bayesrm_fast.serve.work import Choice, Differences, Joint, Means, R, Scores, Work
from bayesrm_fast.serve.worker import Worker
from bayesrm_fast.text.records import Candidates
from bayesrm_fast.text.texts import Text

__all__ = ["AsyncScorer", "EngineClosed", "EngineStats", "QueueFull"]

REQUEST = "the request"
"""What errors call its candidates."""


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
    """Scores requests of any number of tasks and threads in shared batches; one thread owns the model.

    Requests that wait together run together, by their lengths, and each gets the numbers that it would get alone, to
    float rounding. Its methods may be awaited in several event loops and threads at once, and be cancelled. An error
    concerns the request that raises it alone.

    It starts at its first request. `async with` drains it; one that nobody holds any more ends by itself.

    Args:
        rm: the model. Others may use it too, between batches; it need not be the active adapter of its base model.
        max_batch_tokens: of a batch, padding included. Default: the model's own budget, which is the most in any case.
        max_wait_ms: milliseconds that a request waits for others to share its batch with, where there are not enough.
        max_queue_tokens: that wait before a request is refused or has to wait for room. Texts that are not tokenized
            yet count as a token for every four bytes.

    Raises:
        InputError: a limit that is negative, or not a number.
    """

    def __init__(
        self,
        rm: BayesianRewardModel,
        *,
        max_batch_tokens: int | None = None,
        max_wait_ms: float = 2.0,
        max_queue_tokens: int = 1_000_000,
    ) -> None:
        if max_batch_tokens is not None:
            whole(max_batch_tokens, 1, "max_batch_tokens")
        max_wait = at_least(max_wait_ms, 0, "max_wait_ms") / 1000
        whole(max_queue_tokens, 1, "max_queue_tokens")
        if rm.segments is not None:
            raise InputError("an engine scores whole responses, and this is a token classifier: call score_segments")
        self.rm = rm
        self._worker = Worker(rm, max_batch_tokens, max_wait, max_queue_tokens)
        weakref.finalize(self, self._worker.queue.close).atexit = False

    @property
    def accepts(self) -> bool:
        """Whether it takes requests: not once it was drained or closed, or has failed."""
        return self._worker.queue.accepts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.drain()

    async def rewards(self, prompt: Text, responses: Sequence[Text], *, wait: bool = True) -> Tensor:
        """MAP rewards `[n]` of one prompt's responses by forward passes alone; needs no posterior.

        Args:
            prompt, responses: one prompt and n responses.
            wait: for room in the queue, where there is none.

        Raises:
            InputError: no responses, text that cannot be read, a reward that is NaN, or more tokens than the queue
                holds; by its response.
            QueueFull: there is no room, and `wait` is False.
            EngineClosed: the engine was drained, closed or has failed.
        """
        return (await self.score(prompt, responses, variance=False, wait=wait)).mean

    async def score(
        self,
        prompt: Text,
        responses: Sequence[Text],
        *,
        relative_to: Literal["prompt"] | Sequence[Text] | None = None,
        variance: bool = True,
        wait: bool = True,
    ) -> RewardScores:
        """Reward and variance of one prompt's responses, as `BayesianRewardModel.score` gives them.

        Args:
            prompt, responses: one prompt and n responses.
            relative_to: "prompt" for differences to the mean of the responses, n texts for differences to a reference
                each, None for the rewards' own.
            variance: False for means by forward passes alone, with variances of NaN; needs no posterior.
            wait: for room in the queue, where there is none.

        Raises:
            InputError, QueueFull, EngineClosed: as for `rewards`; InputError also where there is no posterior, and for
                means alone that would be relative.
        """
        texts = Responses(prompt, responses)
        if relative_to is None:
            return await self._scored(texts, variance, wait)
        if not variance:
            raise InputError("relative_to goes with variances: ask for both, or for none of them")
        return await self._asked(Differences(texts, relative_to), wait)

    async def score_rows(
        self, prompts: Sequence[Text], responses: Sequence[Text], *, variance: bool = True, wait: bool = True
    ) -> RewardScores:
        """Reward and variance of `responses[i]` to `prompts[i]`; the rest as for `score`."""
        return await self._scored(Rows(prompts, responses), variance, wait)

    async def best_of_n(
        self,
        prompt: Text,
        responses: Sequence[Text],
        rule: str | Mapping[str, Any] | Rule = "std",
        k: float | Literal["tuned"] | None = None,
        *,
        relative: bool = True,
        log_probabilities: Sequence[float] | None = None,
        similarities: Sequence[Sequence[float]] | None = None,
        wait: bool = True,
    ) -> BestOfN:
        """The candidate with the largest score by a rule; arguments as for `BayesianRewardModel.best_of_n`.

        Requests of equal rules share batches.

        Raises:
            InputError, QueueFull, EngineClosed: as for `score`; InputError also of a rule that is unknown or needs what
                is not there.
        """
        candidates = Candidates(prompt, responses, log_probabilities, similarities, where=REQUEST)
        return await self._asked(Choice(candidates, rule, k, relative), wait)

    async def covariance(self, prompt: Text, responses: Sequence[Text], *, wait: bool = True) -> JointRewards:
        """The joint Gaussian over the rewards of one prompt's n candidates; shares no batch with others.

        Raises:
            InputError, QueueFull, EngineClosed: as for `score`.
        """
        return await self._asked(Joint(Candidates(prompt, responses, where=REQUEST)), wait)

    async def score_text(
        self,
        texts: Sequence[str] | Sequence[Sequence[int]],
        *,
        add_special_tokens: bool = True,
        variance: bool = True,
        wait: bool = True,
    ) -> RewardScores:
        """Reward and variance of whole texts, prompt and response together as somebody else has rendered them.

        Args:
            texts: N of them, tokenized as they are; or the token ids of N, as they are.
            add_special_tokens: those at a row's ends; False where the texts hold them. Token ids do in any case.
            variance, wait: as for `score`.

        Raises:
            InputError, QueueFull, EngineClosed: as for `score`.
        """
        return await self._scored(Rendered(texts, add_special_tokens), variance, wait)

    async def _scored(self, texts: Texts, variance: bool, wait: bool) -> RewardScores:
        work: Work[Any, RewardScores] = Scores(texts) if variance else Means(texts)
        return await self._asked(work, wait)

    async def _asked(self, work: Work[Any, R], wait: bool) -> R:
        found: R = await asyncio.wrap_future(self._worker.submit(work, wait))
        return found

    def stats(self) -> EngineStats:
        """What the engine has done."""
        tally, waiting = self._worker.tally, self._worker.queue
        return EngineStats(
            queue_tokens=waiting.tokens,
            queued_requests=waiting.waiting,
            batches=tally.batches,
            batch_tokens=tally.batch_tokens,
            padding=1 - tally.real_tokens / tally.batch_tokens if tally.batch_tokens else 0.0,
            refused=waiting.refused,
            cancelled=waiting.cancelled,
            bisections=tally.bisections,
            memory_halvings=tally.memory_halvings,
            seconds=tally.seconds,
        )

    async def drain(self) -> None:
        """Finish what was accepted, requests that wait for room among it; refuse what is new; end the threads."""
        self._worker.drain()
        await asyncio.shield(asyncio.wrap_future(self._worker.ended))

    async def close(self) -> None:
        """Refuse what is new and what waits, by `EngineClosed`; end the threads after the batch that runs."""
        self._worker.close()
        await asyncio.shield(asyncio.wrap_future(self._worker.ended))
