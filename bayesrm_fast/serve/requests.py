"""A request on its way, the parts of it that wait, and how it may be refused."""

from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from bayesrm_fast.serve.work import Part, Work


class QueueFull(Exception):
    """There is no room for a request that would not wait.

    Attributes:
        retry_after: seconds until what waits is done, by the speed of the last batches.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineClosed(Exception):
    """The engine takes no requests any more, or ended before this one was done."""


@dataclass(eq=False)
class Request:
    """A request on its way.

    Attributes:
        work: what it asks.
        tokens: that it takes of the queue now: reckoned ones until it has parts, then those of the parts that wait.
        future: its answer.
        posterior: mark of the one under which it was tokenized, and all of whose parts must run.
        parts: once it is tokenized.
        results: of its parts by their numbers.
        units: those of its parts that wait.
    """

    work: Work[Any, Any]
    tokens: int
    future: "Future[Any]" = field(default_factory=Future)
    posterior: tuple[Any, ...] = ()
    parts: Sequence[Part] = ()
    results: dict[int, Any] = field(default_factory=dict)
    units: set["Unit"] = field(default_factory=set)


@dataclass(eq=False)
class Unit:
    """A part that waits; see `batching.Waiting`."""

    request: Request
    number: int
    part: Part
    since: float
    passed_over: int = 0

    def __post_init__(self) -> None:
        self.tokens = sum(len(row.input_ids) for row in self.part.rows)

    @property
    def key(self) -> Hashable:
        """See `batching.Waiting`."""
        return self.request.work.key

    @property
    def shares_beginnings(self) -> bool:
        """See `batching.Waiting`."""
        return self.request.work.shares_beginnings
