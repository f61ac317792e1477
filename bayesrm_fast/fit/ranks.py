"""Fitting in several processes, the ranks of a process group: each passes over its share, and all have the same sums.

Before ranks exchange tensors they meet in the group's store, where each says that it has arrived, or why it will not.
So a rank that fails, dies or hangs is named on every other one, whatever the backend.
"""

import contextlib
import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bayesrm_fast.errors import InputError, named
from bayesrm_fast.model.passes import BatchResult, Passes, Progress
from bayesrm_fast.sites import Consumer
from bayesrm_fast.text.examples import Example

BUCKET = 2**25
"""Bytes of small tensors that are exchanged as one."""

ARRIVED, FAILED = "+", "-"


class SummedConsumer(Consumer, Protocol):
    """A consumer that is made of sums over the examples."""

    def sums(self) -> list[Tensor]:
        """See `Sums`."""
        ...


C = TypeVar("C", bound=Consumer)
E = TypeVar("E", bound=Example)
K = TypeVar("K")
S = TypeVar("S", bound=SummedConsumer)
T = TypeVar("T")


class Ranks:
    """The processes that fit together, all with the same model and examples.

    Args:
        group: theirs, of which this process is one; None for this process alone, which exchanges nothing.
        device: where tensors are exchanged.

    Raises:
        InputError: this process is not in the group. From every method: a rank that failed, or did not arrive within
            the timeout of `init_process_group`; the message names it.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.group, self.device = group, device
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        if self.rank < 0:
            raise InputError("this process is not in the group that is to fit")
        self._meetings = 0
        if group is not None:
            self._store = group.get_group_store()
            self._patience: timedelta = self._store.timeout  # type: ignore[attr-defined]  # its stubs have none
            fits = self._store.add(f"bayesrm_fast/fits of {self.rank}", 1)
            self._place = f"bayesrm_fast/fit {fits}"

    def check_same(self, given: Mapping[str, str]) -> None:
        """Raise InputError unless every rank was given the same; the message says what differs."""
        first, *others = [json.loads(said) for said in self.meet(json.dumps(given))]
        for rank, other in enumerate(others, start=1):
            differing = [name for name in first if other.get(name) != first[name]]
            if differing:
                raise InputError(
                    f"rank {rank} was given other {named(differing)} than rank 0: give every rank the same, of which "
                    "it takes its share"
                )

    def share(self, examples: Sequence[Example]) -> list[int]:
        """Positions of this rank's examples: dealt out by length, so that all ranks have as much to do."""
        if self.size == 1:
            return list(range(len(examples)))
        by_length = sorted(range(len(examples)), key=lambda i: (-examples[i].tokens, i))
        return sorted(by_length[self.rank :: self.size])

    def own(self, examples: Sequence[E]) -> list[E]:
        """This rank's examples."""
        return [examples[i] for i in self.share(examples)]

    def before(self, count: int) -> int:
        """Of so many examples, those that are in the shares of the ranks before this one."""
        return sum(len(range(rank, count, self.size)) for rank in range(self.rank))

    def gather(
        self,
        passes: Passes,
        examples: Sequence[Example],
        cotangent: Callable[[Tensor], Tensor],
        make_consumer: Callable[[], S],
        progress: Progress | None,
    ) -> tuple[Tensor, S]:  # shape: (N, S)
        """`Passes.gather` over all ranks: every one of them gets the scalars of all examples, float64, and all sums.

        The progress is that of this rank's share, told as of all examples.
        """
        own = self.share(examples)
        tell = None if progress is None else _of_all(progress, len(own), len(examples))
        found, consumer = passes.gather([examples[i] for i in own], cotangent, make_consumer, tell)
        scalars = torch.zeros(len(examples), found.shape[1], dtype=torch.float64, device="cpu")
        scalars[own] = found.double()
        self.add([scalars, *consumer.sums()])
        return scalars, consumer

    def over(
        self,
        passes: Passes,
        examples: Sequence[Example],
        cotangent: Callable[[Tensor], Tensor],
        make_consumer: Callable[[], C],
        progress: Progress | None = None,
    ) -> Iterator[BatchResult[C]]:
        """`Passes.over` this rank's share, with positions among all examples."""
        own = self.share(examples)
        tell = None if progress is None else _of_all(progress, len(own), len(examples))
        for batch in passes.over([examples[i] for i in own], cotangent, make_consumer, tell):
            yield BatchResult([own[i] for i in batch.positions], batch.scalars, batch.consumers)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Add up each tensor over the ranks, in place; all ranks give the same shapes, and have the same bits after."""
        if self.size == 1:
            return
        tensors = list(tensors)
        with self._exchanging(tensors):
            for bucket in _buckets(tensors):
                self._with_buffer(bucket, lambda flat: dist.all_reduce(flat, group=self.group))

    def from_first(self, tensors: Mapping[K, Tensor]) -> dict[K, Tensor]:
        """The tensors of rank 0, on every rank, with the same names; names that share one share it afterwards.

        All ranks compute them, from the same sums, but other hardware may round an eigenvector otherwise, and keep one
        more of those that are next to nothing.
        """
        if self.size == 1:
            return dict(tensors)
        distinct = {id(tensor): tensor for tensor in tensors.values()}
        shapes = self.object_from_first([tensor.shape for tensor in distinct.values()])
        received = [
            own if own.shape == shape else torch.empty(shape, dtype=own.dtype, device=self.device)
            for own, shape in zip(distinct.values(), shapes, strict=True)
        ]
        with self._exchanging(received):
            for bucket in _buckets(received):
                self._with_buffer(bucket, lambda flat: dist.broadcast(flat, group=self.group, group_src=0))
        by_id = dict(zip(distinct, received, strict=True))
        return {name: by_id[id(tensor)] for name, tensor in tensors.items()}

    def object_from_first(self, value: T) -> T:
        """What rank 0 gives, on every rank."""
        if self.size == 1:
            return value
        held = [value]
        with self._exchanging():
            dist.broadcast_object_list(held, group=self.group, group_src=0)
        return held[0]

    def least(self, value: int) -> int:
        """The smallest of the ranks' numbers."""
        return min(map(int, self.meet(str(value))))

    def meet(self, said: str = "") -> list[str]:
        """Wait until every rank is here, and hear what each of them says."""
        if self.group is None or self.size == 1:
            return [said]
        place, self._meetings = f"{self._place}/{self._meetings}", self._meetings + 1
        try:
            self._store.set(f"{place}/{self.rank}", ARRIVED + said)
            heard = self._heard(place)
        except dist.DistNetworkError as error:
            raise InputError(f"the process that holds the ranks' store, mostly rank 0's, is gone: {error}") from error
        for rank, text in enumerate(heard):
            if text.startswith(FAILED):
                raise InputError(f"rank {rank} failed: {text.removeprefix(FAILED)}")
        return [text.removeprefix(ARRIVED) for text in heard]

    def tell(self, error: BaseException) -> None:
        """Let the other ranks know, where they next meet, that this one has failed."""
        if self.size == 1:
            return
        text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(dist.DistError):
            self._store.set(f"{self._place}/{self._meetings}/{self.rank}", FAILED + text)

    def _heard(self, place: str) -> list[str]:
        """What every rank says at a meeting, once all have come."""
        keys = [f"{place}/{rank}" for rank in range(self.size)]
        given_up = f"{place}/given up"
        if self._store.check([given_up]):
            raise InputError(self._store.get(given_up).decode())
        try:
            self._store.wait(keys, self._patience)
        except dist.DistStoreError:
            absent = [f"rank {rank}" for rank, key in enumerate(keys) if not self._store.check([key])]
            waited = f"{self._patience.total_seconds():g} s"
            self._store.set(given_up, f"rank {self.rank} waited {waited} for {named(absent)}, and gave up")
            raise InputError(
                f"{named(absent)} did not come within {waited}: dead, hanging, or without a call of its own with the "
                "same group"
            ) from None
        return [self._store.get(key).decode() for key in keys]

    @contextlib.contextmanager
    def _exchanging(self, tensors: Sequence[Tensor] = ()) -> Iterator[None]:
        """Run collectives once all ranks are here; where one of them breaks off, find out who is no longer there.

        With tensors of other sizes gloo would end the process.
        """
        kinds = repr([(tensor.dtype, tensor.shape) for tensor in tensors])
        self.check_same({"shapes or dtypes of sums": hashlib.sha256(kinds.encode()).hexdigest()})
        try:
            yield
        except RuntimeError as error:  # what torch raises of a connection that was closed, and of much else
            broken = f"an exchange of tensors broke off ({str(error).splitlines()[0]})"
            self.tell(InputError(broken))
            try:
                self._heard(f"{self._place}/{self._meetings}")
            except InputError as absent:
                raise InputError(f"{broken}: {absent}") from error
            raise InputError(broken) from error

    def _with_buffer(self, bucket: Sequence[Tensor], exchange: Callable[[Tensor], object]) -> None:
        """Exchange tensors of one dtype, in place: one that is contiguous where it stands, others by way of a copy."""
        if len(bucket) == 1 and bucket[0].is_contiguous() and bucket[0].device == self.device:
            exchange(bucket[0])
            return
        flat = torch.cat([tensor.to(self.device).reshape(-1) for tensor in bucket])
        exchange(flat)
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view(tensor.shape))


@contextlib.contextmanager
def ranks_of(group: dist.ProcessGroup | None, device: torch.device) -> Iterator[Ranks]:
    """The ranks that fit together; a failure within is told to the others."""
    ranks = Ranks(group, device)
    try:
        yield ranks
    except BaseException as error:
        ranks.tell(error)
        raise


ALONE = Ranks(None, torch.device("cpu"))
"""One process by itself."""


def digest_of(examples: Iterable[Example]) -> str:
    """SHA-256 of the examples' tokens and labels, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        for row in example.rows:
            digest.update(array("q", [len(row.input_ids), int(example.label_sign)]).tobytes())
            digest.update(array("q", [*row.input_ids, *(row.read_at or ())]).tobytes())
    return digest.hexdigest()


def _of_all(progress: Progress, own: int, total: int) -> Progress:
    def tell(done: int, _: int) -> None:
        progress(total * done // own, total)

    return tell


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype whose bytes together are few, and each larger one by itself; empty ones in none."""
    open_buckets: dict[torch.dtype, list[Tensor]] = {}
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if size > BUCKET:
            yield [tensor]
        elif size:
            if sizes.get(tensor.dtype, 0) + size > BUCKET:
                yield open_buckets.pop(tensor.dtype)
                sizes[tensor.dtype] = 0
            open_buckets.setdefault(tensor.dtype, []).append(tensor)
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + size
    yield from open_buckets.values()
