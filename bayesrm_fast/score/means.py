"""Rewards by forward passes, identical rows and shared beginnings once; and the least that their variances are."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bayesrm_fast.model.passes import (
    Passes,
    Progress,
    check_finite,
    check_finite_variances,
    of_finite,
    rewards_in,
    unit_cotangent,
)
from bayesrm_fast.model.shared_beginnings import Group, scalars_after_beginnings, shared_beginnings
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.text.examples import TokenizedRow, distinct

SURE_OF_A_FLOOR = 15 / 16
"""Of a variance's computed lower bound: what rounding, coarse in bfloat16, cannot push above the variance itself."""


def rewards_of(passes: Passes, rows: Sequence[TokenizedRow], progress: Progress | None = None) -> Tensor:  # shape: (N,)
    """Rewards of rows by forward passes without autograd, on the CPU.

    Args:
        passes: the model.
        rows: N rows.
        progress: told the distinct rows done and their total.

    Raises:
        InputError: a reward that is NaN or infinite, by its row.
    """
    return bounded_rewards(passes, rows, None, progress)[0]


def bounded_rewards(
    passes: Passes,
    rows: Sequence[TokenizedRow],
    posterior: Posterior | None,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:  # shapes: (N,), (N,)
    """Rewards as by `rewards_of`, and lower bounds of their variances at next to no cost.

    A row's bound is its variance under the last layer's conditional posterior, for which the backward pass goes through
    that layer alone. It is zero for rows that share their beginning, whose last layer is not run as a whole; for models
    whose last layer does not work at the scored token alone; and without a posterior.

    Raises:
        InputError: a reward that is NaN or infinite, by its row.
    """
    positions, where = distinct(rows)
    unique = [rows[i] for i in positions]
    groups: list[Group] = []
    if len(unique) > 1 and passes.forward.can_share:
        groups = shared_beginnings(unique, passes.collate.pad_token_id)
    grouped = {row for group in groups for row in group.rows}
    alone = [i for i in range(len(unique)) if i not in grouped]

    found: dict[int, Tensor] = {}
    floors: dict[int, Tensor] = {}
    for batch, rewards, floor in _of_whole_rows(passes, [unique[i] for i in alone], posterior):
        here = [alone[i] for i in batch]
        found.update(zip(here, rewards, strict=True))
        floors.update(zip(here, floor, strict=True))
        if progress is not None:
            progress(len(found), len(unique))
    for here, scalars in scalars_after_beginnings(passes, unique, groups):
        found.update(zip(here, rewards_in(scalars), strict=True))
        if progress is not None:
            progress(len(found), len(unique))
    nothing = torch.zeros((), dtype=torch.float32, device="cpu")
    return (
        torch.stack([found[i] for i in where]),
        torch.stack([floors.get(i, nothing).to(found[i]) for i in where]),
    )


def _of_whole_rows(
    passes: Passes, rows: Sequence[TokenizedRow], posterior: Posterior | None
) -> Iterator[tuple[list[int], Tensor, Tensor]]:  # shapes of each: (B,), (B,)
    """Positions of rows, their rewards, and lower bounds of their variances; on the CPU."""
    last = None if posterior is None else passes.tapped.in_last_layer()
    conditional = None if posterior is None or last is None else posterior.conditional(last.sites)

    def run(positions: list[int]) -> tuple[Tensor, Tensor]:
        chosen = [rows[i] for i in positions]
        if last is None or conditional is None:
            scalars = passes.forward.scalars(passes.collate(chosen))
            floor = torch.zeros(len(chosen), dtype=torch.float32, device="cpu")
        else:
            scalars, (consumer,) = last.run(
                passes.collate(chosen), of_finite(unit_cotangent, chosen), conditional.variance_consumer
            )
            floor = SURE_OF_A_FLOOR * consumer.variance.cpu().expand(len(chosen))
        check_finite(scalars, chosen)
        check_finite_variances(floor, chosen)
        return rewards_in(scalars).cpu(), floor

    for positions, (rewards, floor) in passes.in_batches(rows, run, has_backward=False):
        yield positions, rewards, floor
