"""Rewards by forward passes: identical rows once, a beginning that rows share once; and the least their variance is."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.passes import Passes, Progress, Segment, check_finite, row_cotangent
from bayesrm_fast.posterior import Posterior
from bayesrm_fast.text import TokenizedText

WORTH_SHARING = 1 / 8
"""Of a group's tokens: what sharing must save at least, since the shared keys are copied for every row."""

LEAST_SAVED = 512
"""Tokens that sharing must save at least, since it costs a forward pass more."""

SURE_OF_A_FLOOR = 15 / 16
"""Of a variance's computed lower bound: what rounding, coarse in bfloat16, cannot push above the variance itself."""


@dataclass(frozen=True)
class Group:
    """Rows that begin with the same `shared` tokens."""

    rows: list[int]
    shared: int


def distinct(segments: Sequence[Segment]) -> tuple[list[int], list[int]]:
    """Positions of the first of equal segments, and for every segment where in that list its equal is."""
    first: dict[Hashable, int] = {}
    positions: list[int] = []
    where: list[int] = []
    for position, segment in enumerate(segments):
        key = tuple((tuple(row.input_ids), tuple(row.token_type_ids or ())) for row in segment)
        if key not in first:
            first[key] = len(positions)
            positions.append(position)
        where.append(first[key])
    return positions, where


def rewards_of(
    passes: Passes,
    rows: Sequence[TokenizedText],
    prompts: Sequence[int],
    progress: Progress | None = None,
) -> Tensor:  # shape: (N,)
    """Rewards of rows by forward passes without autograd, on the CPU.

    Args:
        passes: the model.
        rows: N rows.
        prompts: a number for each row's prompt; rows of one prompt may share their beginning.
        progress: told the distinct rows done and their total.

    Raises:
        InputError: a reward that is NaN or infinite.
    """
    return bounded_rewards(passes, rows, prompts, None, progress)[0]


def bounded_rewards(
    passes: Passes,
    rows: Sequence[TokenizedText],
    prompts: Sequence[int],
    posterior: Posterior | None,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:  # shapes: (N,), (N,)
    """Rewards as by `rewards_of`, and lower bounds of their variances at next to no cost.

    A row's bound is its variance under the last layer's conditional posterior, for which the backward pass goes through
    that layer alone. It is zero for rows that share their beginning, whose last layer is not run as a whole; for models
    whose last layer does not work at the scored token alone; and without a posterior.

    Raises:
        InputError: a reward that is NaN or infinite.
    """
    last = None if posterior is None else passes.tapped.in_last_layer()
    conditional = None if posterior is None or last is None else posterior.conditional(last.sites)
    positions, where = distinct([(row,) for row in rows])
    unique = [rows[i] for i in positions]
    groups: list[Group] = []
    if passes.classifier.shortcuts.shared_prefix:
        groups = shared_beginnings(unique, [prompts[i] for i in positions], passes.pad_token_id)
    grouped = {row for group in groups for row in group.rows}
    plain = [i for i in range(len(unique)) if i not in grouped]
    found: dict[int, Tensor] = {}
    floors: dict[int, Tensor] = {}

    def tell(done: int, _: int) -> None:
        if progress is not None:
            progress(len(found), len(unique))

    def run_plainly(batch: list[int]) -> None:
        chosen = [plain[i] for i in batch]
        collated = passes.collate([(unique[i],) for i in chosen])
        if last is None or conditional is None:
            rewards = passes.classifier.rewards(collated)
        else:
            consumer = conditional.variance_consumer(len(chosen))
            rewards = last.run(collated, row_cotangent, consumer)
            floors.update(zip(chosen, SURE_OF_A_FLOOR * consumer.variance.cpu(), strict=True))
        check_finite(rewards[:, None], [positions[i] for i in chosen])
        found.update(zip(chosen, rewards.cpu(), strict=True))

    for _ in passes.in_batches([(unique[i],) for i in plain], run_plainly, tell, has_backward=False):
        pass

    beginnings = [(_part(unique[group.rows[0]], 0, group.shared),) for group in groups]

    def run_shared(batch: list[int]) -> None:
        _run_after_beginnings(passes, unique, positions, [groups[i] for i in batch], found)

    for _ in passes.in_batches(beginnings, run_shared, tell, has_backward=False):
        pass
    nothing = torch.zeros(())
    return (
        torch.stack([found[i] for i in where]),
        torch.stack([floors.get(i, nothing).to(found[i]) for i in where]),
    )


def _run_after_beginnings(
    passes: Passes,
    rows: Sequence[TokenizedText],
    names: Sequence[int],
    groups: Sequence[Group],
    found: dict[int, Tensor],
) -> None:
    """One pass over the groups' beginnings, then one over what follows them, in batches that fit."""
    beginnings = passes.collate([(_part(rows[group.rows[0]], 0, group.shared),) for group in groups])
    cache = passes.classifier.prefill(beginnings)
    lengths = torch.tensor([group.shared for group in groups], device=passes.device)
    members = [(owner, row) for owner, group in enumerate(groups) for row in group.rows]
    rest = [(_part(rows[row], groups[owner].shared, None),) for owner, row in members]
    longest = max(group.shared for group in groups)

    def run(batch: list[int]) -> None:
        owners = torch.tensor([members[i][0] for i in batch], device=passes.device)
        chosen = [members[i][1] for i in batch]
        rewards = passes.classifier.rewards_after(cache, lengths, owners, passes.collate([rest[i] for i in batch]))
        check_finite(rewards[:, None], [names[i] for i in chosen])
        found.update(zip(chosen, rewards.cpu(), strict=True))

    for _ in passes.in_batches(rest, run, None, has_backward=False, before=longest):
        pass


def shared_beginnings(rows: Sequence[TokenizedText], prompts: Sequence[int], pad_token_id: int | None) -> list[Group]:
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


def _last_real(ids: Sequence[int], pad_token_id: int | None) -> int:
    return next((i for i in range(len(ids) - 1, -1, -1) if ids[i] != pad_token_id), 0)


def _part(row: TokenizedText, start: int, stop: int | None) -> TokenizedText:
    types = row.token_type_ids
    return TokenizedText(row.input_ids[start:stop], None if types is None else types[start:stop], row.truncated)
