"""What a ggn fit keeps in memory, known before it begins."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bayesrm_fast.batching import plan_batches
from bayesrm_fast.curvature import GGN_OVERSAMPLING, ggn_columns
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
        margin: vectors beside two for each eigenpair: of the sketch's margin, and of a batch's gradients.
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


def ggn_memory(passes: Passes, segments: Sequence[Segment], rank: int | None) -> FitMemory:
    """The memory of a ggn fit on these pairs: test matrix, sketch, eigenvectors, and one batch's gradients."""
    size = sum(site.r * site.d for site in passes.tapped.sites)
    columns = ggn_columns(rank, len(segments), size)
    summed = len(segments) if len(segments) <= columns else 2 * columns
    kept = columns if rank is None else min(rank, columns)
    batch = max(len(positions) for positions in plan_batches(segments, passes.room.batch_tokens))
    itemsize = torch.empty((), dtype=passes.tapped.gradient_dtype).element_size()
    return FitMemory(
        vector=size * itemsize,
        vectors=summed + kept + batch,
        free=free_bytes(passes.device),
        rank=rank,
        margin=2 * GGN_OVERSAMPLING + batch,
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
