"""Rows that begin alike: their beginning's keys and values once."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesrm_fast.model.passes import Passes, check_finite
from bayesrm_fast.text.examples import TokenizedRow

WORTH_SHARING = 1 / 8
"""Of a group's tokens: what sharing must save at least, since the shared keys are copied for every row."""

LEAST_SAVED = 512
"""Tokens that sharing must save at least, since it costs a forward pass more."""


@dataclass(frozen=True)
class Group:
    """Rows that begin with the same `shared` tokens."""

    rows: list[int]
    shared: int


def shared_beginnings(rows: Sequence[TokenizedRow], pad_token_id: int | None) -> list[Group]:
    """The rows that should share their beginning in a forward pass; see `groups_that_save`."""
    return groups_that_save(rows, pad_token_id, WORTH_SHARING, LEAST_SAVED)


def groups_that_save(
    rows: Sequence[TokenizedRow], pad_token_id: int | None, worth: float, least_saved: float
) -> list[Group]:
    """The groups of rows that save the most tokens by sharing their beginning, read at as many tokens each.

    A row keeps at least the last token that is no padding token and those at which it is read.

    Args:
        rows: of whatever prompts; rows of several may share what these have in common, too.
        pad_token_id: None for none.
        worth: of a group's tokens, what sharing must save at least.
        least_saved: tokens that it must save at least.
    """
    inputs = [_inputs(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (rows[i].reads, inputs[i]))
    kept = [min((_last_real(rows[i].input_ids, pad_token_id), *(rows[i].read_at or ()))) for i in order]
    lengths = [len(rows[i].input_ids) for i in order]
    common = [
        _common(inputs[a], inputs[b]) if rows[a].reads == rows[b].reads else 0 for a, b in itertools.pairwise(order)
    ]
    chosen: list[tuple[int, int, int, float]] = []  # start, stop, shared and saved tokens, in their order
    for depth, start, stop in _alike(common):
        inside = []
        while chosen and chosen[-1][0] >= start:
            inside.append(chosen.pop())
        shared = min(depth, *kept[start:stop])
        saved = (stop - start - 1) * shared
        is_worth = saved >= max(least_saved, worth * sum(lengths[start:stop]))
        if is_worth and saved > sum(one[-1] for one in inside):
            chosen.append((start, stop, shared, saved))
        else:
            chosen += reversed(inside)
    return [Group(sorted(order[start:stop]), shared) for start, stop, shared, _ in chosen]


def _alike(common: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of sorted rows that begin alike, the longest for each beginning: its length, the first row and the one past
    the last; shorter runs before the longer ones that they are in.

    Args:
        common: how many tokens each row shares with the one after it.
    """
    opened: list[tuple[int, int]] = []
    for row, depth in enumerate([*common, 0]):
        start = row
        while opened and opened[-1][0] > depth:
            length, start = opened.pop()
            yield length, start, row + 1
        if depth > 0 and (not opened or opened[-1][0] < depth):
            opened.append((depth, start))


def _inputs(row: TokenizedRow) -> list[Any]:
    """What a model sees of each token."""
    types = row.token_type_ids
    return row.input_ids if types is None else list(zip(row.input_ids, types, strict=True))


def _common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many tokens two rows begin with alike; by halves, since comparing lists is quick."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def scalars_after_beginnings(
    passes: Passes, rows: Sequence[TokenizedRow], groups: Sequence[Group]
) -> Iterator[tuple[list[int], Tensor]]:  # shape of each: (B, S)
    """Positions of rows and their scalars on the CPU: passes over beginnings, then over what follows them.

    Raises:
        InputError: a reward that is NaN or infinite, by its row.
    """
    beginnings = [rows[group.rows[0]].part(0, group.shared) for group in groups]

    def run(batch: list[int]) -> list[tuple[list[int], Tensor]]:
        return list(_after(passes, rows, [groups[i] for i in batch]))

    for _, found in passes.in_batches(beginnings, run, has_backward=False):
        yield from found


def _after(passes: Passes, rows: Sequence[TokenizedRow], groups: Sequence[Group]) -> Iterator[tuple[list[int], Tensor]]:
    cache = passes.forward.prefill(passes.collate([rows[group.rows[0]].part(0, group.shared) for group in groups]))
    lengths = torch.tensor([group.shared for group in groups], dtype=torch.int64, device=passes.device)
    members = [(owner, row) for owner, group in enumerate(groups) for row in group.rows]
    rest = [rows[row].part(groups[owner].shared, None) for owner, row in members]

    def run(batch: list[int]) -> Tensor:
        owners = torch.tensor([members[i][0] for i in batch], dtype=torch.int64, device=passes.device)
        following = [rest[i] for i in batch]
        scalars = passes.forward.scalars_after(cache, lengths, owners, passes.collate(following))
        check_finite(scalars, following)
        return scalars.cpu()

    longest = max(group.shared for group in groups)
    for batch, scalars in passes.in_batches(rest, run, has_backward=False, before=longest):
        yield [members[i][1] for i in batch], scalars


def _last_real(ids: Sequence[int], pad_token_id: int | None) -> int:
    return next((i for i in range(len(ids) - 1, -1, -1) if ids[i] != pad_token_id), 0)
