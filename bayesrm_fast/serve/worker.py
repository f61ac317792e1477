"""The two threads of an engine: one makes tokens, the other one owns the model."""

import atexit
import queue
import threading
import time
import traceback
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from bayesrm_fast.model.exclusive import exclusively
from bayesrm_fast.model.lora import active
from bayesrm_fast.model.passes import Passes
from bayesrm_fast.model.token_budget import is_out_of_memory, release_memory
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.reward_model import BayesianRewardModel
from bayesrm_fast.serve.batching import next_batch
from bayesrm_fast.serve.queue import RequestQueue
from bayesrm_fast.serve.requests import EngineClosed, Request, Unit
from bayesrm_fast.serve.work import Work
from bayesrm_fast.text.batches import Collator, TokenBatch
from bayesrm_fast.text.examples import Example

FIRST_BATCH_TOKENS = 4096
"""Of the first batch; with it the model tells its own budget, which on a GPU takes trials."""

SECONDS_AT_EXIT = 30.0
"""In which a batch that runs when the interpreter exits may end; torch does not bear a thread that is cut off."""


@dataclass
class Tally:
    """What the model was run on; see `EngineStats`."""

    batches: int = 0
    batch_tokens: int = 0
    real_tokens: int = 0
    bisections: int = 0
    memory_halvings: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class CountingCollator(Collator):
    """Counts the batches that it makes."""

    tally: Tally = field(default_factory=Tally)

    def __call__(self, examples: Sequence[Example]) -> TokenBatch:
        """See `Collator`."""
        batch = super().__call__(examples)
        self.tally.batches += 1
        self.tally.batch_tokens += batch.input_ids.numel()
        self.tally.real_tokens += sum(example.tokens for example in examples)
        return batch


class Worker:
    """A model that serves a queue.

    It holds nothing of those that ask, so that an engine which nobody holds any more can end it.

    Args:
        rm: the model.
        max_batch_tokens: of a batch; None for the model's own budget.
        max_wait: seconds that a part waits for others.
        max_queue_tokens: that wait.
    """

    def __init__(
        self, rm: BayesianRewardModel, max_batch_tokens: int | None, max_wait: float, max_queue_tokens: int
    ) -> None:
        self._rm = rm
        self._max_batch_tokens = max_batch_tokens
        self._passes: Passes | None = None
        self._to_tokenize: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self.queue = RequestQueue(max_queue_tokens, max_wait, self._to_tokenize.put)
        self.tally = Tally()
        self.ended: Future[None] = Future()
        self._starting = threading.Lock()
        self._threads: list[threading.Thread] = []

    def submit(self, work: Work[Any, Any], wait: bool) -> "Future[Any]":
        """A new request's answer; raises what `RequestQueue.submit` does."""
        with self._starting:
            if self.queue.accepts and not self._threads:
                self._start()
        if self.queue.accepts and not all(thread.is_alive() for thread in self._threads):
            raise EngineClosed("the engine's threads are gone; after a fork, the child needs an engine of its own")
        return self.queue.submit(work, work.texts.tokens(self._rm.encoder.max_length), wait)

    def _start(self) -> None:
        # Daemons, because nobody need close an engine; `_end_all` ends them before the interpreter would.
        targets = {"bayesrm-tokens": self._make_tokens, "bayesrm-model": self._serve}
        self._threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in targets.items()]
        for thread in self._threads:
            thread.start()
        _running.add(self)

    def drain(self) -> None:
        """Take nothing new; the threads end once all is done that was accepted."""
        self.queue.drain()
        self._end_unstarted()

    def close(self) -> None:
        """Take nothing new, refuse what waits; the threads end after the batch that they are at."""
        self.queue.close()
        self.queue.refuse_waiting()
        self._end_unstarted()

    def _end_unstarted(self) -> None:
        with self._starting:
            if not self._threads and not self.ended.done():
                self.queue.end(None)
                self.ended.set_result(None)

    def join(self, seconds: float) -> None:
        """Wait for the threads."""
        for thread in self._threads:
            if thread.is_alive():
                thread.join(seconds)

    def _make_tokens(self) -> None:
        cause: BaseException | None = None
        try:
            while (request := self._to_tokenize.get()) is not None:
                if self.queue.is_open(request):
                    self._make_tokens_of(request)
        except BaseException as error:
            cause = error
        finally:
            self.queue.end(cause)

    def _make_tokens_of(self, request: Request) -> None:
        request.posterior = _mark(self._rm.posterior)
        try:
            self.queue.tokenized(request, request.work.prepare(self._rm))
        except Exception as error:
            self.queue.finish(request, error=error)

    def _serve(self) -> None:
        cause: BaseException | None = None
        try:
            while window := self.queue.window(self._batch_tokens):
                chosen = next_batch(window, self._batch_tokens, self._rm.collator.pad_token_id, self._shares_beginnings)
                self._run(self.queue.take([window[i] for i in chosen], window))
        except BaseException as error:
            cause = error
        finally:
            self._to_tokenize.put(None)
            self.queue.end(cause)
            self.ended.set_result(None)

    @property
    def _batch_tokens(self) -> int:
        own = FIRST_BATCH_TOKENS if self._passes is None else self._passes.budget.batch_tokens
        return own if self._max_batch_tokens is None else min(own, self._max_batch_tokens)

    @property
    def _shares_beginnings(self) -> bool:
        return self._passes is not None and self._passes.forward.shortcuts.shared_prefix

    def _run(self, units: Sequence[Unit]) -> None:
        """Run parts together, and where that fails each half of them by itself."""
        left = [list(units)]
        while left:
            batch = [unit for unit in left.pop() if self.queue.is_open(unit.request)]
            if batch and not self._served(batch):
                self.tally.bisections += 1
                left += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]

    def _served(self, batch: Sequence[Unit]) -> bool:
        """Whether parts have got their numbers, or the only one its error."""
        failure: Exception | None = None
        try:
            results = self._results(batch)
        except Exception as error:
            failure = error
        if failure is not None:
            traceback.clear_frames(failure.__traceback__)  # they hold what the batch has allocated
            if is_out_of_memory(failure):
                release_memory(self._rm.collator.device)
        self._begin_anew(batch)
        if failure is None:
            for unit, result in zip(batch, results, strict=True):
                self._deliver(unit, result)
            return True
        if len(batch) == 1:
            self.queue.finish(batch[0].request, error=failure)
        return len(batch) == 1

    def _begin_anew(self, batch: Sequence[Unit]) -> None:
        """Requests that were tokenized under another posterior than there is after a batch of them.

        So that an answer is of one: a request may run in several batches, and a choice be by a k that was tuned.
        """
        mark = _mark(self._rm.posterior)
        for unit in batch:
            if unit.request.posterior != mark:
                self.queue.begin_anew(unit.request)

    def _results(self, batch: Sequence[Unit]) -> list[Any]:
        start = time.perf_counter()
        with exclusively(self._rm.model), active(self._rm.model, self._rm.adapter):
            passes = self._rm.reward_passes()
            collator = CountingCollator(**vars(passes.collate), tally=self.tally)
            self._passes = replace(passes, collate=collator)
            shrinks = passes.budget.shrinks
            try:
                return batch[0].request.work.run(self._rm, self._passes, [unit.part for unit in batch])
            finally:
                self.tally.memory_halvings += passes.budget.shrinks - shrinks
                seconds = time.perf_counter() - start
                self.tally.seconds += seconds
                self.queue.ran(sum(unit.tokens for unit in batch), seconds)

    def _deliver(self, unit: Unit, result: Any) -> None:
        request = unit.request
        request.results[unit.number] = result
        if len(request.results) < len(request.parts):
            return
        try:
            results = [request.results[number] for number in range(len(request.parts))]
            answer = request.work.answer(request.parts, results)
        except Exception as error:
            self.queue.finish(request, error=error)
        else:
            self.queue.finish(request, answer)


def _mark(posterior: Posterior | None) -> tuple[Any, ...]:
    """Equal while it is this posterior, with the λ, the temperature and the penalty that it has now."""
    return () if posterior is None else (posterior, posterior.prior, posterior.temperature, posterior.penalty)


_running: "weakref.WeakSet[Worker]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    workers = list(_running)
    for worker in workers:
        worker.queue.close()
    for worker in workers:
        worker.join(SECONDS_AT_EXIT)
