"""Where the model of a command runs: in this process, or in Ray's actors."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Generic, Literal, TypeVar

import typer

from bayesrm_fast.cli.work import Engine, Row, Work
from bayesrm_fast.errors import InputError

T = TypeVar("T")

EngineName = Annotated[
    Literal["local", "ray"], typer.Option(help="Where the model runs: in this process, or in Ray's actors.")
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Of Ray, a model each. Default: one a GPU of the cluster, or one a core but one."),
]


class InThisProcess(Generic[T]):
    """A model that is loaded here; raises what `Work.load` does."""

    def __init__(self, work: Work[T]) -> None:
        self._loaded = work.load()
        self.facts = self._loaded.facts

    def results(
        self, chunks: Iterable[list[T]], records: Callable[[], Iterator[T]], done: int
    ) -> Iterator[tuple[list[T], list[Row]]]:
        """See `Engine`."""
        return self._loaded.results(chunks)


def started(work: Work[T], engine: str, workers: int | None) -> AbstractContextManager[Engine[T]]:
    """Work on an engine.

    Args:
        work: to be done.
        engine: "local" or "ray".
        workers: of Ray; None for as many as the cluster has room for.

    Raises:
        InputError: workers without Ray, Ray is not installed or has no room for them, or what `Work.load` raises.
    """
    if engine == "local":
        if workers is not None:
            raise InputError("--workers are Ray's: they go with --engine ray")
        return nullcontext(InThisProcess(work))
    try:
        from bayesrm_fast.cli.on_ray import OnRay
    except ImportError as error:
        raise InputError(f"Ray needs the extra: pip install 'bayesrm_fast[ray]' ({error})") from error
    return OnRay(work, workers)
