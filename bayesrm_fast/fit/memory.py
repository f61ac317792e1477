"""What a ggn fit keeps in memory, known before it begins."""

from collections.abc import Sequence
from dataclasses import dataclass

from bayesrm_fast.errors import InputError
from bayesrm_fast.fit.sketches import GGN_OVERSAMPLING, keeps_every_pair, sketch_columns
from bayesrm_fast.model.passes import Passes
from bayesrm_fast.model.token_budget import free_bytes
from bayesrm_fast.text.batches import plan_batches
from bayesrm_fast.text.examples import LabelledExample

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
        most = int(SPARE * self.free / max(self.vector, 1))
        if self.vectors <= most:
            return
        fitting = (most - self.margin) // 3
        advice = f"rank={fitting} would fit" if fitting > 0 else "no rank would; structure='kfac' needs less"
        raise InputError(f"rank={self.rank} does not fit: {self}; {advice}")


def ggn_memory(passes: Passes, pairs: Sequence[LabelledExample], rank: int | None, second_pass: bool) -> FitMemory:
    """Of a ggn fit on these pairs: test matrix and sketch, or gradients; eigenvectors; one batch's gradients."""
    sites = passes.tapped.sites
    batch = _largest_batch(passes, pairs)
    columns = None if rank is None else sketch_columns(rank, sites)
    return FitMemory(
        vector=sum(site.r * site.d for site in sites) * passes.tapped.gradient_dtype.itemsize,
        vectors=_kept_by_fit(len(pairs), rank, columns, second_pass) + batch,
        free=free_bytes(passes.device),
        rank=rank,
        margin=3 * GGN_OVERSAMPLING + batch,
    )


def weights_that_fit(passes: Passes, pairs: Sequence[LabelledExample], rank: int | None, second_pass: bool) -> int:
    """How many weights a ggn fit of this rank on these pairs has memory for."""
    columns = None if rank is None else rank + GGN_OVERSAMPLING
    vectors = _kept_by_fit(len(pairs), rank, columns, second_pass) + _largest_batch(passes, pairs)
    return int(SPARE * free_bytes(passes.device)) // (vectors * passes.tapped.gradient_dtype.itemsize)


def _kept_by_fit(pairs: int, rank: int | None, columns: int | None, second_pass: bool) -> int:
    """Vectors of what is summed and of what is made of it."""
    if rank is None or columns is None:
        return 2 * pairs
    if keeps_every_pair(rank, pairs):
        return pairs + min(rank, pairs)
    return 2 * columns + (columns if second_pass else min(rank, columns))


def _largest_batch(passes: Passes, pairs: Sequence[LabelledExample]) -> int:
    return max(len(positions) for positions in plan_batches(pairs, passes.budget.batch_tokens))


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
