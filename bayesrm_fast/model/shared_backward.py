"""Rows that begin alike: their beginning's forward pass once, and a backward pass through it for each of them.

What follows runs on copies of the beginning's keys and values, whose cotangents then go through the beginning's one
graph side by side, as autograd's batched gradients.
"""

import logging
import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.calls import Call, joined
from bayesrm_fast.model.exclusive import exclusively
from bayesrm_fast.model.forward import cache_of, held_in
from bayesrm_fast.model.passes import (
    BatchResult,
    KeptGradients,
    Passes,
    Progress,
    check_finite,
    of_finite,
    unit_cotangent,
)
from bayesrm_fast.model.shared_beginnings import LEAST_SAVED, Group, groups_that_save
from bayesrm_fast.model.shortcut_trials import ERRORS, said
from bayesrm_fast.model.tap_pass import Seen, TapPass, feed_gradients, sides
from bayesrm_fast.model.taps import TappedModel
from bayesrm_fast.model.token_budget import is_out_of_memory
from bayesrm_fast.sites import Consumer
from bayesrm_fast.text.batches import SMALLEST_BATCH, TokenBatch
from bayesrm_fast.text.examples import Example, TokenizedRow

C = TypeVar("C", bound=Consumer)

WORTH_SHARING = 0.4
"""Of a group's tokens: what sharing must save at least. A backward pass costs what a forward pass costs, and is not
saved; attention's, which autograd cannot batch, costs more."""

WEIGHT_OF_A_BEGINNING = 1 / 4
"""Of its tokens, what they count for every row of a batch: of these the graph is held once, but keys and values, their
cotangents and those of one layer at a time for each row."""

logger = logging.getLogger("bayesrm_fast")

_served: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()
"""Whether a model has stood its trial."""


def over_examples(
    passes: Passes,
    examples: Sequence[Example],
    cotangent: Callable[[Tensor], Tensor],
    make_consumer: Callable[[], C],
    progress: Progress | None = None,
) -> Iterator[BatchResult[C]]:
    """`Passes.over`, for consumers of gradients alone, with beginnings shared where that saves enough."""
    groups = _groups(passes, examples)
    grouped = {i for group in groups for i in group.rows}
    alone = [i for i in range(len(examples)) if i not in grouped]
    done = 0
    for batch in _all(passes, examples, alone, groups, cotangent, make_consumer):
        yield batch
        done += len(batch.positions)
        if progress is not None:
            progress(done, len(examples))


def _all(
    passes: Passes,
    examples: Sequence[Example],
    alone: Sequence[int],
    groups: Sequence[Group],
    cotangent: Callable[[Tensor], Tensor],
    make_consumer: Callable[[], C],
) -> Iterator[BatchResult[C]]:
    for batch in passes.over([examples[i] for i in alone], cotangent, make_consumer):
        yield replace(batch, positions=[alone[i] for i in batch.positions])
    for group in groups:
        rows = [row for i in group.rows for row in examples[i].rows]
        beginning = passes.collate([rows[0].part(0, group.shared)])
        rest = [row.part(group.shared, None) for row in rows]
        before = int(WEIGHT_OF_A_BEGINNING * group.shared)

        def run(
            positions: list[int], rows: Any = rows, beginning: Any = beginning, rest: Any = rest
        ) -> tuple[Tensor, list[C]]:
            # Since a batch before memory may be short, where the beginning's graph would have to be held.
            if passes.budget.checkpoints or not _served[passes.forward.model]:
                return passes.run(rows, positions, cotangent, make_consumer)
            chosen = [rows[i] for i in positions]
            following = passes.collate([rest[i] for i in positions])
            try:
                scalars, consumers = run_after(
                    passes.tapped, beginning, following, of_finite(cotangent, chosen), make_consumer
                )
            except InputError:
                raise
            except ERRORS as failure:  # of a model that was compiled, say, since it was tried
                if is_out_of_memory(failure):
                    raise
                _refuse(passes.forward.model, said(failure))
                return passes.run(rows, positions, cotangent, make_consumer)
            check_finite(scalars, chosen)
            return scalars, consumers

        for positions, (scalars, consumers) in passes.in_batches(rest, run, has_backward=True, before=before):
            yield BatchResult([group.rows[i] for i in positions], scalars, consumers)


def _groups(passes: Passes, examples: Sequence[Example]) -> list[Group]:
    """Those that save enough, of a model that can share; none of examples of several rows."""
    rows = [row for example in examples for row in example.rows]
    if len(rows) < 2 or len(rows) != len(examples) or passes.budget.checkpoints or not passes.forward.can_share:
        return []
    # A group is a call of its own: it must be large enough for that.
    least = max(LEAST_SAVED, WORTH_SHARING * SMALLEST_BATCH * passes.budget.batch_tokens)
    groups = groups_that_save(rows, passes.collate.pad_token_id, WORTH_SHARING, least)
    return groups if groups and _serves(passes, [rows[i] for i in groups[0].rows[:2]], groups[0].shared) else []


def _serves(passes: Passes, rows: Sequence[TokenizedRow], shared: int) -> bool:
    """Whether sharing gives a model's gradients: tried once, on the first two rows that would share and fit."""
    model = passes.forward.model
    if torch.float16 in {parameter.dtype for parameter in model.parameters()}:
        return False  # the whole pass has to be repeated where its gradients overflow
    if model not in _served:
        try:
            refusal = _refusal(passes, rows, shared)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        _served[model] = True
        if refusal is not None:
            _refuse(model, refusal)
    return _served[model]


def _refuse(model: nn.Module, why: str) -> None:
    _served[model] = False
    logger.info("rows with a backward pass do not share the forward pass of their beginning: %s", why)


def _refusal(passes: Passes, rows: Sequence[TokenizedRow], shared: int) -> str | None:
    """Why rows are not to share; None where they may."""
    dtypes = {parameter.dtype for parameter in passes.forward.model.parameters()}
    beginning = passes.collate([rows[0].part(0, shared)])
    following = passes.collate([row.part(shared, None) for row in rows])
    try:
        _, found = run_after(passes.tapped, beginning, following, unit_cotangent, KeptGradients)
        _, expected = passes.tapped.run(passes.collate(rows), unit_cotangent, KeptGradients)
    except ERRORS as failure:
        if is_out_of_memory(failure):
            raise
        return said(failure)
    error = norm = 0.0
    for shared_one, whole_one in zip(found, expected, strict=True):
        for site, gradient in whole_one.by_site.items():
            error = math.hypot(error, float((shared_one.by_site[site] - gradient).double().norm()))
            norm = math.hypot(norm, float(gradient.double().norm()))
    rounding = max(torch.finfo(dtype).eps for dtype in {*dtypes, torch.float32} if dtype.is_floating_point) ** 0.5
    return None if error <= rounding * norm else f"its gradients differ by {error:.1e} of {norm:.1e}"


def run_after(
    tapped: TappedModel,
    beginning: TokenBatch,
    following: TokenBatch,
    cotangent: Callable[[Tensor], Tensor],
    make_consumer: Callable[[], C],
) -> tuple[Tensor, list[C]]:  # shape: (N, S)
    """`TappedModel.run` of rows that begin alike, for consumers of gradients alone; not of a float16 model.

    Args:
        tapped: a model whose rows may share keys and values.
        beginning: one row.
        following: of N rows what follows the beginning.
        cotangent, make_consumer: as for `TappedModel.run`.
    """
    forward, count = tapped.forward, following.input_ids.shape[0]
    with exclusively(forward.model), torch.enable_grad():
        first = TapPass(beginning, forward.calls(beginning), drops_padding=False)
        with forward.prepared(beginning, every_token=True), first.tapping(tapped.taps):
            cache = forward.keys_and_values(beginning)
            first.end_forward(tapped.taps)
        length = beginning.input_ids.shape[1]
        before = torch.full((count,), length, dtype=torch.int64, device=following.input_ids.device)
        shared = [part for pair in held_in(cache) for part in pair]
        own = [part.detach().expand(count, *part.shape[1:]).requires_grad_(part.requires_grad) for part in shared]
        second = TapPass(following, [_one_call(following)], drops_padding=False)
        with forward.prepared(following), second.tapping(tapped.taps):
            copies = cache_of(zip(own[::2], own[1::2], strict=True))
            scalars = forward.after(copies, before, length, following)
            second.end_forward(tapped.taps)
            consumers = [make_consumer() for _ in range(scalars.shape[1])]
            for column, consumer in enumerate(consumers):
                one, is_last = scalars[:, column], column == scalars.shape[1] - 1
                leaves = [part for part in own if part.requires_grad]
                later: list[Seen] = []
                with second.receiving(later.append):
                    _, *cotangents = torch.autograd.grad(
                        one,
                        [second.root, *leaves],
                        cotangent(one.detach()),
                        retain_graph=not is_last,
                        allow_unused=True,
                    )
                join = _Join(length, following, consumer, later)
                reached = [part for part, copy in zip(shared, own, strict=True) if copy.requires_grad]
                used = [(part, g[:, None]) for part, g in zip(reached, cotangents, strict=True) if g is not None]
                if used:
                    parts, of_all_rows = zip(*used, strict=True)
                    with first.receiving(join.receive):
                        _side_by_side(parts, first.root, of_all_rows, retain_graph=not is_last)
                join.finish()
        return scalars.detach(), consumers


def _side_by_side(parts: Sequence[Tensor], root: Tensor, cotangents: Sequence[Tensor], retain_graph: bool) -> None:
    """The backward pass of `parts` once, for all of N cotangents `[N, …]` of each."""

    def backward(*one: Tensor) -> Tensor:
        torch.autograd.grad(parts, root, one, retain_graph=retain_graph, allow_unused=True)
        return one[0]

    with warnings.catch_warnings():  # of attention, whose backward pass is then made for each by itself
        warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
        torch.func.vmap(backward)(*cotangents)


def _one_call(batch: TokenBatch) -> Call:
    return Call(torch.arange(batch.input_ids.shape[0], dtype=torch.int64, device=batch.input_ids.device), batch)


class _Join:
    """Feeds a consumer with the gradients of what a tap saw in both parts, as soon as the beginning's has come."""

    def __init__(self, length: int, following: TokenBatch, consumer: Consumer, later: Sequence[Seen]) -> None:
        self.length, self.following, self.consumer = length, following, consumer
        self.later = {seen.tap.name: seen for seen in later}

    def receive(self, seen: Seen) -> None:
        """What a tap saw in the beginning, its cotangents those of all rows side by side."""
        cotangent = None if seen.down_cotangent is None else unbatched(seen.down_cotangent)
        side_by_side = replace(seen, g=unbatched(seen.g), down_cotangent=cotangent)
        begun = _each(side_by_side, lambda x: x.reshape(-1, self.length, x.shape[-1]))
        self._feed(self.later.pop(seen.tap.name), [_outer(p, q) for _, p, q in sides(begun)])

    def finish(self) -> None:
        """Taps through which nothing of the beginning reaches the reward."""
        with torch.no_grad():
            for seen in self.later.values():
                self._feed(seen, [0.0] * len(seen.tap.sites))

    def _feed(self, later: Seen, before: Sequence[Tensor | float]) -> None:
        call = _one_call(self.following)

        def tokens(x: Tensor) -> Tensor:  # shape: (N, T, …), where T = 1 for one vector a row
            found = joined([call], [x], self.following, later.tap.name)
            return found[:, None] if found.dim() == 2 else found

        device = self.following.input_ids.device  # as in `TapPass.feed`
        for (site, p, q), shared in zip(sides(_each(later, tokens)), before, strict=True):
            feed_gradients(self.consumer, site, (_outer(p, q) + shared).to(device))


def _each(seen: Seen, change: Callable[[Tensor], Tensor]) -> Seen:
    """With every tensor changed."""
    down = None if seen.down is None else change(seen.down)
    cotangent = None if seen.down_cotangent is None else change(seen.down_cotangent)
    return replace(seen, a=change(seen.a), g=change(seen.g), down=down, down_cotangent=cotangent)


def _outer(p: Tensor, q: Tensor) -> Tensor:  # (N or 1, T, r), (N or 1, T, d) -> (N, r, d)
    """`Σ_t p_t q_tᵀ`; what one row has goes with all of the other's."""
    q = q.to(p.dtype)
    if q.shape[0] == 1:
        return (p.transpose(1, 2).flatten(0, 1) @ q[0]).view(p.shape[0], p.shape[2], -1)
    return p.transpose(1, 2).expand(q.shape[0], -1, -1) @ q


def unbatched(x: Tensor) -> Tensor:  # shape: (N, …)
    """A cotangent within batched gradients, as a plain tensor of all of them."""
    kept: list[Tensor] = []
    _Unbatched.apply(x, kept.append)
    return kept[0]


class _Unbatched(torch.autograd.Function):
    """Identity that hands over what it is called on; `keep` is a function, since lists would be taken apart."""

    @staticmethod
    def forward(x: Tensor, keep: Callable[[Tensor], None]) -> Tensor:
        keep(x[None])
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, keep: Callable[[Tensor], None]) -> tuple[Tensor, int]:
        keep(x.movedim(in_dims[0], 0))
        return x, in_dims[0]
