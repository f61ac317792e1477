"""Rows of one prompt that begin alike: their beginning's keys and values once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


def shared_beginnings(rows: Sequence[TokenizedRow], prompts: Sequence[int], pad_token_id: int | None) -> list[Group]:
    """The prompts whose rows should share their beginning, by counted tokens.

    A row keeps at least the last token that is no padding token, because its reward is read there.
    """
    by_prompt: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(row)
    groups = []
    for members in by_prompt.values():
        if len(members) == 1:
            continue
        ids = [rows[i].input_ids for i in members]
        shared = min(_last_real(row, pad_token_id) for row in ids)
        least, greatest = min(ids), max(ids)  # what these two share in lexicographic order, all share
        shared = next((i for i in range(shared) if least[i] != greatest[i]), shared)
        saved = (len(members) - 1) * shared
        if saved >= max(LEAST_SAVED, WORTH_SHARING * sum(map(len, ids))):
            groups.append(Group(members, shared))
    return groups


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
