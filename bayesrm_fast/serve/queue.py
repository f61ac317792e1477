"""What waits for the model: admitted by its tokens, kept in the order of its coming."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from bayesrm_fast.errors import InputError
from bayesrm_fast.serve.batching import WINDOW
from bayesrm_fast.serve.requests import EngineClosed, QueueFull, Request, Unit
from bayesrm_fast.serve.work import Part, Work

BEFORE_ANY_BATCH = 1.0
"""Seconds after which to come again, while no batch has told how fast the model is."""

MEMORY_OF_SPEED = 0.9
"""Weight of what was known of the speed before a batch."""

ENDED_BEFORE = "was closed before the request was done"


class RequestQueue:
    """All requests that have no answer yet; for any number of threads.

    A request is refused or waits for room, is tokenized, waits for the model, runs part by part, and is finished. One
    that waits for room counts as accepted. Waiting ones come in first come, first served, so that a large one is not
    passed by smaller ones for ever.

    Args:
        max_tokens: that wait.
        max_wait: seconds that parts wait for others to share their batch with.
        tokenize: is given each request that has room; must not wait.
    """

    def __init__(self, max_tokens: int, max_wait: float, tokenize: Callable[[Request], object]) -> None:
        self._max_tokens, self._max_wait, self._tokenize = max_tokens, max_wait, tokenize
        # Re-entrant: the garbage collector may call `close` wherever this thread is.
        self._changed = threading.Condition(threading.RLock())
        self._open: dict[Request, None] = {}
        self._without_room: OrderedDict[Request, None] = OrderedDict()
        self._units: OrderedDict[Unit, None] = OrderedDict()
        self._unit_tokens = 0
        self._running_tokens = 0
        self._is_draining = self._is_closed = False
        self._cause: BaseException | None = None
        self._recent_tokens = self._recent_seconds = 0.0
        self.tokens = 0
        self.refused = 0
        self.cancelled = 0

    @property
    def accepts(self) -> bool:
        """Whether it takes new requests."""
        return not (self._is_draining or self._is_closed)

    @property
    def waiting(self) -> int:
        """Requests of which nothing has run yet."""
        with self._changed:
            return sum(not request.parts or len(request.units) == len(request.parts) for request in self._open)

    def submit(self, work: Work[Any, Any], tokens: int, wait: bool) -> "Future[Any]":
        """A new request's answer.

        Args:
            work: what it asks.
            tokens: as far as they are known.
            wait: for room, where there is none.

        Raises:
            QueueFull: there is no room, and it would not wait.
            EngineClosed: too late.
        """
        request = Request(work, min(tokens, self._max_tokens))
        with self._changed:
            if not self.accepts:
                raise self._closed("takes no requests any more")
            has_room = not self._without_room and self._has_room(request)
            if not has_room and not wait:
                self.refused += 1
                raise QueueFull(
                    f"the request has about {tokens} tokens, and {self.tokens} of {self._max_tokens} are taken",
                    self._retry_after(),
                )
            self._open[request] = None
            self._without_room[request] = None
            self._admit()
        request.future.add_done_callback(partial(self._forget, request))
        return request.future

    def _has_room(self, request: Request) -> bool:
        return self.tokens + request.tokens <= self._max_tokens

    def _admit(self) -> None:
        while self._without_room and self._has_room(request := next(iter(self._without_room))):
            del self._without_room[request]
            self.tokens += request.tokens
            self._tokenize(request)

    def _retry_after(self) -> float:
        if not self._recent_tokens:
            return BEFORE_ANY_BATCH
        return (self.tokens + self._running_tokens) * self._recent_seconds / self._recent_tokens

    def is_open(self, request: Request) -> bool:
        """Whether somebody still waits for its answer."""
        with self._changed:
            return request in self._open

    def tokenized(self, request: Request, parts: Sequence[Part]) -> None:
        """Let a request's parts wait for the model.

        Raises:
            InputError: more tokens than the queue ever has room for.
        """
        now = time.monotonic()
        units = [Unit(request, number, part, now) for number, part in enumerate(parts)]
        tokens = sum(unit.tokens for unit in units)
        if tokens > self._max_tokens:
            raise InputError(
                f"the request has {tokens} tokens, and max_queue_tokens is {self._max_tokens}: ask for less at a time"
            )
        with self._changed:
            if request not in self._open:
                return
            self.tokens += tokens - request.tokens
            request.tokens, request.parts, request.units = tokens, parts, set(units)
            self._units.update(dict.fromkeys(units))
            self._unit_tokens += tokens
            self._admit()
            self._changed.notify_all()

    def window(self, max_tokens: int) -> list[Unit]:
        """The parts that came first, as many as fill `WINDOW` batches; waits until a batch is due. None at the end.

        A batch is due when there are tokens for a full one, and otherwise `max_wait` after its first part came.

        Args:
            max_tokens: of a batch.
        """
        with self._changed:
            while not self._is_closed:
                if self._units:
                    left = next(iter(self._units)).since + self._max_wait - time.monotonic()
                    if left <= 0 or self._unit_tokens >= max_tokens or self._is_draining:
                        return self._first(WINDOW * max_tokens)
                    self._changed.wait(left)
                elif self._is_draining and not self._open:
                    break
                else:
                    self._changed.wait()
        return []

    def _first(self, tokens: int) -> list[Unit]:
        found: list[Unit] = []
        for unit in self._units:
            found.append(unit)
            tokens -= unit.tokens
            if tokens <= 0:
                break
        return found

    def begin_anew(self, request: Request) -> None:
        """Have a request tokenized and run again as a whole, unless nobody waits for it any more."""
        with self._changed:
            if request not in self._open:
                return
            tokens = sum(len(row.input_ids) for part in request.parts for row in part.rows)
            anew = Request(request.work, tokens, request.future)
            self._open[anew] = None
            self.tokens += tokens
            self._tokenize(anew)
            self._leave(request)
        anew.future.add_done_callback(partial(self._forget, anew))

    def take(self, chosen: Sequence[Unit], window: Sequence[Unit]) -> list[Unit]:
        """Those of the chosen parts that still wait, and do no longer; the others of the window are passed over."""
        with self._changed:
            taken = [unit for unit in chosen if unit in self._units]
            for unit in taken:
                self._drop(unit)
            self._running_tokens = sum(unit.tokens for unit in taken)
            for unit in window:
                unit.passed_over += 1
            self._admit()
        return taken

    def ran(self, tokens: int, seconds: float) -> None:
        """Learn how fast the model is."""
        with self._changed:
            self._running_tokens = 0
            self._recent_tokens = MEMORY_OF_SPEED * self._recent_tokens + tokens
            self._recent_seconds = MEMORY_OF_SPEED * self._recent_seconds + seconds

    def finish(self, request: Request, answer: Any = None, error: BaseException | None = None) -> None:
        """Give a request its answer or its error, unless nobody waits for it any more."""
        with self._changed:
            if not self._leave(request):
                return
        _settle(request.future, answer, error)

    def _leave(self, request: Request) -> bool:
        """Take all of a request out; False where that was done before."""
        if request not in self._open:
            return False
        del self._open[request]
        if request in self._without_room:
            del self._without_room[request]
        else:
            for unit in list(request.units):
                self._drop(unit)
            self.tokens -= request.tokens
            request.tokens = 0
        self._admit()
        self._changed.notify_all()
        return True

    def _drop(self, unit: Unit) -> None:
        del self._units[unit]
        unit.request.units.discard(unit)
        unit.request.tokens -= unit.tokens
        self.tokens -= unit.tokens
        self._unit_tokens -= unit.tokens

    def _forget(self, request: Request, future: "Future[Any]") -> None:
        if future.cancelled():
            with self._changed:
                self.cancelled += self._leave(request)

    def drain(self) -> None:
        """Take nothing new; `window` is empty once all requests are finished."""
        with self._changed:
            self._is_draining = True
            self._changed.notify_all()

    def refuse_waiting(self) -> None:
        """Finish by `EngineClosed` what is not running as a whole."""
        with self._changed:
            refused = [request for request in self._open if not request.parts or request.units]
            for request in refused:
                self._leave(request)
        for request in refused:
            _settle(request.future, None, self._closed(ENDED_BEFORE))

    def close(self) -> None:
        """Take nothing new; `window` is empty at once."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def end(self, cause: BaseException | None) -> None:
        """Finish all requests by `EngineClosed`, and refuse later ones; both tell the cause."""
        self.close()
        with self._changed:
            self._cause = self._cause or cause
            left = list(self._open)
            for request in left:
                self._leave(request)
        for request in left:
            _settle(request.future, None, self._closed(ENDED_BEFORE))

    def _closed(self, what: str) -> EngineClosed:
        error = EngineClosed(f"the engine {what}" if self._cause is None else f"the engine has failed: {self._cause!r}")
        error.__cause__ = self._cause
        return error


def _settle(future: "Future[Any]", answer: Any, error: BaseException | None) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if error is None:
        future.set_result(answer)
    else:
        future.set_exception(error)
