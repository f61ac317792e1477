"""The work of a command in actors of Ray Data.

The process that runs the command reads, checks and writes; actors load the model, tokenize and score. What the two say
to one another are bytes, because a file's rows need not fit a schema of Arrow.
"""

import contextlib
import itertools
import logging
import os
import pickle
import signal
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import ray
import ray.data
from ray._private.services import canonicalize_bootstrap_address
from ray.data import ActorPoolStrategy
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

from bayesrm_fast.cli.terminal import show_line
from bayesrm_fast.cli.work import Facts, LoadedWork, Row, Work
from bayesrm_fast.errors import InputError
from bayesrm_fast.integrations.ray import MOST_DEATHS, WorkerRoom

T = TypeVar("T")
Said = dict[str, list[bytes]]
"""A batch of Ray Data with one row, whose column `said` holds what was pickled."""

EACH_CHUNK_ITS_BLOCK = 1
"""Bytes that a block has at most, but for one row: a block is what goes to an actor, and what is lost with one."""

SECONDS_TO_ANSWER = 10.0
"""Of a cluster's address, before Ray tries it for minutes."""

SECONDS_BETWEEN_LINES = 60.0
"""While a worker is waited for."""

DEATHS = (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError)
"""What Ray raises where a process ends without a word; whatever else a worker raises is its own."""


class OnRay(Generic[T]):
    """Work in actors of a Ray cluster: that of `RAY_ADDRESS`, or one of this machine's that ends with the work.

    Args:
        work: what each actor does, at paths that its node has too.
        workers: actors; None for as many as there is room for.

    Raises:
        InputError: there is no cluster, or it has no room for so many workers.
    """

    def __init__(self, work: Work[T], workers: int | None) -> None:
        self._work = work
        self._folder = Path.cwd()
        self._is_our_cluster = not ray.is_initialized()
        if self._is_our_cluster:
            _connect()
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised too
        room = WorkerRoom.of_cluster()
        self._room, self._workers = room, workers or room.workers
        if self._workers > room.most:
            self.__exit__()
            if not room.most:
                raise InputError("the cluster has neither a GPU nor a CPU for a worker")
            raise InputError(
                f"--workers {workers} is too many: each takes one of the cluster's {room.most} {room.kind}s"
            )

    def facts(self, input_sha256: str) -> Facts:
        """Of the work on this input, by a model that a worker loads.

        Raises:
            InputError: what `Work.load` raises there, or every worker dies of it.
        """
        told = ray.remote(max_retries=MOST_DEATHS, **self._room.each)(_facts).remote(
            self._work, self._folder, input_sha256
        )
        while not ray.wait([told], timeout=SECONDS_BETWEEN_LINES)[0]:
            kind, most = self._room.kind, self._room.most
            free = int(ray.available_resources().get(kind, 0))
            show_line(f"waiting for a worker to load the model ({free} of the cluster's {most} {kind}s are free)")
        try:
            found: Facts = _heard(ray.get(told))
        except DEATHS as error:
            raise InputError(
                f"workers died, {MOST_DEATHS + 1} of them, while they loaded the model: {_first_line(error)}"
            ) from error
        return found

    def results(
        self, chunks: Iterable[list[T]], records: Callable[[], Iterator[T]], done: int
    ) -> Iterator[tuple[list[T], list[Row]]]:
        """The results of each chunk's records, one each, in the order of the chunks.

        A worker that dies is started again, and so is the chunk that it was at, unless all die of it.

        Args:
            chunks: of the records that are left.
            records: reads all of them from their first; called on this node, in a process of its own.
            done: that have their results already.

        Raises:
            InputError: what a worker raises, a chunk at which every worker dies, or records that are not the chunks'.
        """
        from bayesrm_fast.cli.resumable import CHUNK

        left = iter(chunks)
        first = next(left, None)
        if first is None:
            return
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        dataset = ray.data.from_items([done])
        context = dataset.context
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        context.target_max_block_size = EACH_CHUNK_ITS_BLOCK
        read = _Read(records, self._folder, CHUNK)
        dataset = dataset.map_batches(read, batch_size=1, num_cpus=0, label_selector=here).map_batches(
            _Worker,
            fn_constructor_args=(self._work, self._folder),
            compute=ActorPoolStrategy(size=self._workers),
            batch_size=1,
            ray_remote_args_fn=lambda: {"max_task_retries": MOST_DEATHS},
            **self._room.each,
        )
        for chunk, row in itertools.zip_longest(itertools.chain([first], left), _rows(dataset)):
            found = [] if row is None else _heard(row["said"])
            if chunk is None or len(found) != len(chunk):
                raise InputError("the input has changed while it was read: run again")
            yield chunk, found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_our_cluster:
            ray.shutdown()


def _connect() -> None:
    """To the cluster that there is, or to one that is started.

    Raises:
        InputError: it does not answer, or this machine is none of its nodes.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if "://" in address:
        raise InputError(
            f"RAY_ADDRESS={address} is for Ray's client: run the command on a node of the cluster, without it"
        )
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        _check_answers(canonicalize_bootstrap_address(None))
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except InputError:
        raise
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f" at RAY_ADDRESS={address}" if address else ""
        raise InputError(f"Ray has no cluster{where} for this process: {_first_line(error)}") from error
    finally:
        signal.signal(signal.SIGTERM, on_termination)  # Ray's own dumps a stack, and leaves no time to clean up


def _check_answers(address: str | None) -> None:
    """Raise InputError where nothing listens at a cluster's address, which Ray would try for minutes."""
    if address is None:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error}): set RAY_ADDRESS to one that does, "
            "or `ray stop` where it is what is left of one"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _rows(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    try:
        yield from dataset.iter_rows()
    except DEATHS as error:
        raise InputError(f"workers died, {MOST_DEATHS + 1} of them at the same rows: {_first_line(error)}") from error


class _Read(Generic[T]):
    """Chunks of records, after those that are done."""

    def __init__(self, records: Callable[[], Iterator[T]], folder: Path, size: int) -> None:
        self._records = records
        self._folder = folder
        self._size = size

    def __call__(self, batch: dict[str, Any]) -> Iterator[Said]:
        (done,) = batch["item"].tolist()
        # What cannot be read any more is missed where the results are counted.
        with contextlib.suppress(InputError), contextlib.chdir(self._folder):
            left = itertools.islice(self._records(), done, None)
            while chunk := list(itertools.islice(left, self._size)):
                yield {"said": [pickle.dumps(chunk)]}


class _Worker:
    """What an actor does: a model that is loaded once, and the chunks that come."""

    def __init__(self, work: Work[Any], folder: Path) -> None:
        self._refusal: InputError | None = None
        try:
            self._loaded = _loaded(work, folder)
        except InputError as error:
            self._refusal = error

    def __call__(self, batch: dict[str, Any]) -> Said:
        (chunk,) = batch["said"]
        return {"said": [_said(lambda: self._results(pickle.loads(chunk)))]}

    def _results(self, chunk: list[Any]) -> list[Row]:
        if self._refusal is not None:
            raise self._refusal
        ((_, found),) = self._loaded.results([chunk])
        return found


def _loaded(work: Work[T], folder: Path) -> LoadedWork[T]:
    if not folder.is_dir():
        raise InputError(f"a worker's node has no folder {folder}: it must have the files that the command names")
    with contextlib.chdir(folder):
        try:
            return work.load()
        except InputError as error:
            where = f"in {folder} on the worker's node {ray.util.get_node_ip_address()}"
            raise InputError(f"{error} ({where})") from error


def _facts(work: Work[Any], folder: Path, input_sha256: str) -> bytes:
    return _said(lambda: _loaded(work, folder).facts(input_sha256))


def _said(work: Callable[[], Any]) -> bytes:
    """What was done, or the sentence that refuses it, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found, refusal = work(), None
        except InputError as error:
            found, refusal = None, str(error)
    told = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    return pickle.dumps((found, refusal, told))


def _heard(said: bytes) -> Any:
    found, refusal, told = pickle.loads(said)
    for text in told:
        warnings.warn(text, stacklevel=3)
    if refusal is not None:
        raise InputError(refusal)
    return found
