"""What a ggn fit keeps in memory, known before it begins."""

from collections.abc import Sequence
from dataclasses import dataclass

from bayesrm_fast.batching import plan_batches
from bayesrm_fast.curvature import GGN_OVERSAMPLING, keeps_every_pair, sketch_columns
from bayesrm_fast.errors import InputError
from bayesrm_fast.passes import Passes, Segment
from bayesrm_fast.room import free_bytes

SPARE = 0.9
"""Of the free memory: what a fit may plan with."""


@dataclass(frozen=True)
class FitMemory:
    """Bytes that a fit keeps, beside what its batches take to run.

    Attributes:
        vector: one vector over all sites' weights.
        vectors: how many of them there are.
        free: what the device has left.
        rank: the eigenpairs asked for, None for all.
        margin: vectors beside three for each eigenpair, of the sketch's margin and of a batch's gradients.
    """

    vector: int
    vectors: int
    free: int
    rank: int | None
    margin: int

    @property
    def total(self) -> int:
        """Bytes of all vectors."""
        return self.vector * self.vectors

    def __str__(self) -> str:
        return f"the fit keeps {_size(self.total)} of {_size(self.free)} that are free"

    def refuse_what_does_not_fit(self) -> None:
        """Raise InputError, with the rank that would fit, where the fit does not."""
        room = int(SPARE * self.free / max(self.vector, 1))
        if self.vectors <= room:
            return
        fitting = (room - self.margin) // 3
        advice = f"rank={fitting} would fit" if fitting > 0 else "no rank would; structure='kfac' needs less"
        raise InputError(f"rank={self.rank} does not fit: {self}; {advice}")


def ggn_memory(passes: Passes, segments: Sequence[Segment], rank: int | None, second_pass: bool) -> FitMemory:
    """Of a ggn fit on these pairs: test matrix and sketch, or gradients; eigenvectors; one batch's gradients."""
    sites = passes.tapped.sites
    if rank is None or keeps_every_pair(rank, len(segments)):
        summed = len(segments)
        made = summed if rank is None else min(rank, summed)
    else:
        columns = sketch_columns(rank, sites)
        summed = 2 * columns
        made = columns if second_pass else min(rank, columns)
    batch = max(len(positions) for positions in plan_batches(segments, passes.room.batch_tokens))
    return FitMemory(
        vector=sum(site.r * site.d for site in sites) * passes.tapped.gradient_dtype.itemsize,
        vectors=summed + made + batch,
        free=free_bytes(passes.device),
        rank=rank,
        margin=3 * GGN_OVERSAMPLING + batch,
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
