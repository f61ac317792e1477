"""Making virtual adapters: which layers get one, and their A."""

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bayesrm_fast.fit.memory import weights_that_fit
from bayesrm_fast.fit.moments import SecondMoment
from bayesrm_fast.fit.options import FitOptions
from bayesrm_fast.fit.ranks import ALONE, Ranks
from bayesrm_fast.model.calls import by_row, in_order
from bayesrm_fast.model.layers import refuse
from bayesrm_fast.model.passes import Passes, check_finite, drawn
from bayesrm_fast.model.virtual import (
    LinearLayer,
    VirtualAdapter,
    VirtualTap,
    chosen_layers,
    keeping_input,
    linear_layers,
)
from bayesrm_fast.model.virtual_options import VirtualOptions
from bayesrm_fast.text.batches import TokenBatch
from bayesrm_fast.text.examples import LabelledExample

SAMPLE = 128
"""Pairs whose tokens give A; their directions settle long before that."""


def make_virtual_adapter(
    passes: Passes,
    pairs: Sequence[LabelledExample],
    options: VirtualOptions,
    fit: FitOptions,
    ranks: Ranks = ALONE,
) -> VirtualAdapter:
    """Virtual adapters whose A are the leading eigenvectors of the layers' input second moments, one for each input.

    Args:
        passes: the model; what it taps is in the posterior too.
        pairs: the tokens of at most `SAMPLE` of them, drawn by lot, give the moments.
        options: rank and targets.
        fit: that will follow, which "auto" leaves memory for.
        ranks: that fit together, and have the same A.

    Raises:
        InputError: targets that cannot be served, or a rank beyond a layer's input.
    """
    layers = linear_layers(passes.forward, passes.collate(pairs[:1]))
    weights = None
    if fit.structure == "ggn":
        weights = ranks.least(weights_that_fit(passes, pairs, fit.kept, fit.second_pass))
        weights -= sum(site.r * site.d for site in passes.tapped.sites)
    layers = chosen_layers(passes.forward.model, layers, options, weights)
    refuse([layer.name for layer in layers if options.rank > layer.d_in], f"virtual_rank={options.rank} on inputs of")
    directions = input_directions(passes, layers, pairs, options.rank, ranks)
    taps = [VirtualTap(layer.name, layer.module, directions[layer.input_number], layer.d_out) for layer in layers]
    return VirtualAdapter(options, taps)


def input_directions(
    passes: Passes, layers: Sequence[LinearLayer], pairs: Sequence[LabelledExample], rank: int, ranks: Ranks = ALONE
) -> dict[int, Tensor]:
    """For each `input_number` the leading `rank` eigenvectors of the input's second moment, rows of `[rank, d_in]`."""
    sample = ranks.own(drawn(pairs, SAMPLE))
    first = {layer.input_number: layer for layer in reversed(layers)}

    def run(positions: list[int]) -> dict[int, SecondMoment]:
        pairs = [sample[i] for i in positions]
        batch = passes.collate(pairs)
        moments: dict[int, SecondMoment] = {}
        calls = passes.forward.calls(batch)
        scalars = []
        for call in calls:
            with contextlib.ExitStack() as stack:
                for number, layer in first.items():
                    hook = keeping_input(_adding(moments, number, layer.d_in, rank, call.batch))
                    stack.callback(layer.module.register_forward_pre_hook(hook).remove)
                stack.enter_context(passes.forward.prepared(call.batch, every_token=True))
                with torch.no_grad():
                    scalars.append(passes.forward(call.batch))
        check_finite(in_order(calls, scalars), [row for pair in pairs for row in pair.rows])
        return moments

    total = {number: SecondMoment(layer.d_in, rank, passes.device) for number, layer in first.items()}
    for _, moments in passes.in_batches(sample, run, has_backward=False):
        for number, moment in moments.items():
            total[number].merge(moment)
    ranks.add(sums for moment in total.values() for sums in moment.sums())
    dtype = passes.forward.dtype
    found = {str(n): _with_one_sign(moment.eigenbasis(rank).vectors.T).to(dtype) for n, moment in total.items()}
    return {int(number): directions for number, directions in ranks.from_first(found).items()}


def _with_one_sign(rows: Tensor) -> Tensor:  # shape: (rank, d_in)
    """Eigenvectors whose largest number is positive: rounding alone turns their signs, which a sketch's Ω does see."""
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * largest.sign()


def _adding(
    moments: dict[int, SecondMoment], number: int, size: int, rank: int, batch: TokenBatch
) -> Callable[[Tensor], None]:
    def add(x: Tensor) -> None:
        seen = by_row(x, batch)
        assert seen is not None  # `linear_layers` has found that the layer serves
        if number not in moments:
            moments[number] = SecondMoment(size, rank, x.device)
        moments[number].add(seen[batch.attention_mask.bool().to(x.device)] if seen.dim() == 3 else seen)

    return add
