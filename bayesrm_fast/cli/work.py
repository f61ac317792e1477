"""What a command does with a model to a file's records, apart from where the model runs."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Row = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What is known of a run once its model is loaded.

    Attributes:
        job: what its results follow from.
        told: of the model, for the summary.
    """

    job: dict[str, Any]
    told: dict[str, Any] = field(default_factory=dict)


class LoadedWork(Protocol[T]):
    """A model at its work on the chunks of a file."""

    def facts(self, input_sha256: str) -> Facts:
        """Of its work on this input."""

    def results(self, chunks: Iterable[list[T]]) -> Iterator[tuple[list[T], list[Row]]]:
        """The results of each chunk's records, one each, with the chunk."""


class Work(Protocol[T]):
    """What a process does that has no model yet; it can be pickled."""

    def load(self) -> LoadedWork[T]:
        """With the model; raises InputError where it cannot be loaded, or cannot do the work."""


class Engine(Protocol[T]):
    """Work in progress, wherever it is done."""

    def facts(self, input_sha256: str) -> Facts:
        """Of the work on this input."""

    def results(
        self, chunks: Iterable[list[T]], records: Callable[[], Iterator[T]], done: int
    ) -> Iterator[tuple[list[T], list[Row]]]:
        """The results of each chunk's records, one each, in the order of the chunks.

        Args:
            chunks: of the records that are left.
            records: reads all of them from their first, wherever it is called.
            done: that have their results already.
        """
