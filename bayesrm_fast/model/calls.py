"""Which rows of a batch share a call of the model, and what its layers saw put back into the batch's order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.shortcuts import Shortcuts
from bayesrm_fast.text.batches import TokenBatch


@dataclass(frozen=True)
class Call:
    """Rows of a batch that share a call.

    Attributes:
        rows: `[C]`, where in the batch they are.
        batch: of them alone, as long as the longest.
    """

    rows: Tensor
    batch: TokenBatch


def calls_of(batch: TokenBatch, shortcuts: Shortcuts) -> list[Call]:
    """The calls that give every row of a batch the reward that it has alone; mostly one, of the batch itself."""
    rows = batch.input_ids.shape[0]
    keys = [0] * rows
    lengths = batch.attention_mask.sum(1).tolist() if shortcuts.equal_lengths or shortcuts.switches else []
    if shortcuts.equal_lengths:
        keys = lengths
    elif shortcuts.switches:
        keys = [sum(length > switch for switch in shortcuts.switches) for length in lengths]
    together: dict[int, list[int]] = {}
    for row, key in enumerate(keys):
        together.setdefault(key, []).append(row)
    groups = list(together.values())
    if shortcuts.tokens_first:
        # With as many rows as tokens, padding included, nobody could tell a layer's `[T, B, d]` from `[B, T, d]`.
        longest = [max(lengths[i] for i in group) if lengths else batch.input_ids.shape[1] for group in groups]
        groups = [
            group[start : start + max(length - 1, 1)]
            for group, length in zip(groups, longest, strict=True)
            for start in range(0, len(group), max(length - 1, 1))
        ]
    if len(groups) == 1:
        return [Call(torch.arange(rows, dtype=torch.int64, device=batch.input_ids.device), batch)]
    return [_call(batch, torch.tensor(group, dtype=torch.int64, device=batch.input_ids.device)) for group in groups]


def _call(batch: TokenBatch, rows: Tensor) -> Call:
    mask = batch.attention_mask[rows]
    length = int(mask.sum(1).max())
    types = batch.token_type_ids
    return Call(
        rows,
        replace(
            batch,
            input_ids=batch.input_ids[rows, :length],
            attention_mask=mask[:, :length],
            token_type_ids=None if types is None else types[rows, :length],
            signs=(1.0,),
            read_at=None if batch.read_at is None else batch.read_at[rows],
        ),
    )


def in_order(calls: Sequence[Call], scalars: Sequence[Tensor]) -> Tensor:  # shape: (B, S)
    """The rows' scalars of each call, in the order of the batch's rows."""
    if len(calls) == 1:
        return scalars[0]
    return torch.cat(list(scalars))[torch.cat([call.rows for call in calls]).argsort()]


def by_row(x: Tensor, batch: TokenBatch) -> Tensor | None:  # shape: (B, T, d), (B, S, d) or (B, d)
    """What a layer saw or gave in a call, by row; None where it is neither of the call's tokens nor of its rows.

    Args:
        x: `[B, T', d]`, `[B, 1, T', d]`, `[T', B, d]`, `[B · T, d]`, or of rows `[B, d]`, `[B, 1, d]` or `[1, B, d]`,
            where T' is T or more, because some models pad to a multiple of their attention's window; or `[B, S, d]` of
            the S tokens at which rows are read.
        batch: of the call.
    """
    rows, length = batch.input_ids.shape
    x = _without_head(x)
    if x.dim() == 2 and x.shape[0] == rows:
        return x
    if x.dim() == 2 and x.shape[0] == rows * length:
        return x.view(rows, length, -1)
    if x.dim() == 3 and x.shape[0] == rows and x.shape[1] >= length:
        return x[:, :length]
    if x.dim() == 3 and x.shape[1] == rows and x.shape[0] >= length:
        return x[:length].transpose(0, 1)
    if batch.read_at is not None and batch.read_at.shape[1] > 1 and x.shape[:-1] == batch.read_at.shape:
        return x
    if x.shape[:-1] in ((rows, 1), (1, rows)):  # Longformer's queries at its global token
        return x.reshape(rows, -1)
    return None


def _without_head(x: Tensor) -> Tensor:
    """`[B, 1, T, d]` as `[B, T, d]`: DeepSeek's latents have one head."""
    return x[:, 0] if x.dim() == 4 and x.shape[1] == 1 else x


def loses(g: Tensor, batch: TokenBatch) -> bool:
    """Whether a cotangent that `by_row` takes is not zero beyond the tokens of its call."""
    length = batch.input_ids.shape[1]
    g = _without_head(g)
    if g.dim() < 3 or g.shape[0] * g.shape[1] <= batch.input_ids.numel():
        return False
    beyond = g[:, length:] if g.shape[0] == batch.input_ids.shape[0] else g[length:]
    return bool(beyond.any())


def joined(calls: Sequence[Call], seen: Sequence[Tensor], batch: TokenBatch, name: str) -> Tensor:
    """What a layer saw or gave in each call as of the whole batch, `[B, T, d]`, `[B, S, d]` or `[B, d]`.

    Raises:
        InputError: it is neither of the batch's tokens nor of its rows.
    """
    parts = []
    for call, x in zip(calls, seen, strict=True):
        part = by_row(x, call.batch)
        if part is None:
            raise InputError(f"cannot serve {name}: it is called on {list(x.shape)}, not on the batch's tokens")
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    shape = batch.input_ids.shape[: parts[0].dim() - 1]
    whole = parts[0].new_zeros(*shape, parts[0].shape[-1])
    for call, part in zip(calls, parts, strict=True):
        rows = call.rows.to(part.device)
        if part.dim() == 2:
            whole[rows] = part
        else:
            whole[rows, : part.shape[1]] = part
    return whole
