"""The last layer at the one token of each row that the reward reads.

What its attention queries and its feed-forward block compute at other tokens, nothing reads: their cotangents are zero,
and so is what they would add to any gradient. Keys and values of all tokens stay.
"""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bayesrm_fast.model.layers import last_layer
from bayesrm_fast.text.batches import TokenBatch

ScoredToken = Literal["first", "last", "read"]

PREFIX = "bayesrm_scored_token_"
"""Of the attention functions' names. Each batch has its own, because models in other threads run theirs."""

_numbers = itertools.count()


def feed_forward(layer: nn.Module) -> tuple[nn.Module, str] | None:
    """The module and the name of its method `[B, T, d] -> [B, T, d]` that is the layer's feed-forward block.

    Found by what transformers' layers call it: `mlp` in decoders, `feed_forward_chunk` in BERT's family.
    """
    if hasattr(layer, "feed_forward_chunk"):
        return layer, "feed_forward_chunk"
    mlp = getattr(layer, "mlp", None)
    return (mlp, "forward") if isinstance(mlp, nn.Module) else None


def attentions(layer: nn.Module) -> list[nn.Module]:
    """The layer's modules that ask transformers' interface for scaled dot product attention."""
    found = [module for module in layer.modules() if hasattr(module, "config") and hasattr(module, "scaling")]
    return [module for module in found if getattr(module.config, "_attn_implementation", None) == "sdpa"]


def is_separable(model: nn.Module) -> bool:
    """Whether anything of the last layer can be left out at the other tokens."""
    layer = last_layer(model)
    return layer is not None and (feed_forward(layer) is not None or bool(attentions(layer)))


@contextlib.contextmanager
def scored_token_alone(model: nn.Module, batch: TokenBatch, token: ScoredToken) -> Iterator[None]:
    """The last layer's queries and feed-forward block at one token of each row, and zero at the others.

    Args:
        model: for which `is_separable` holds.
        batch: that will run.
        token: "first"; "last": the last that is no padding token, as transformers finds it; or "read": those at which
            the batch says that each row is read.
    """
    layer = last_layer(model)
    assert layer is not None
    rows = torch.arange(batch.input_ids.shape[0], dtype=torch.int64, device=batch.input_ids.device)[:, None]
    at = torch.zeros_like(rows)
    if token == "read" and batch.read_at is not None:  # the readout refuses a batch that does not say
        at = batch.read_at
    elif token == "last":
        at = (batch.input_ids != batch.pad_token_id).long().cumsum(1).argmax(1, keepdim=True)
    with contextlib.ExitStack() as stack:
        block = feed_forward(layer)
        if block is not None:
            owner, name = block
            stack.enter_context(_replaced(owner, name, _at_scored_tokens(getattr(owner, name), rows, at)))
        queried = attentions(layer)
        if queried:
            name = f"{PREFIX}{next(_numbers)}"
            ALL_ATTENTION_FUNCTIONS[name] = _for_scored_queries(rows, at)
            stack.callback(ALL_ATTENTION_FUNCTIONS.__delitem__, name)
        for module in queried:
            stack.callback(setattr, module, "config", module.config)
            config: Any = copy.copy(module.config)
            config._attn_implementation_internal = name  # the setter would change sub-configs that are not copied
            module.config = config
        yield


@contextlib.contextmanager
def _replaced(owner: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """A module with another method; one that others have put on this very module, not on its class, is so again."""
    own = {name: vars(owner)[name]} if name in vars(owner) else {}
    vars(owner)[name] = method
    try:
        yield
    finally:
        del vars(owner)[name]
        vars(owner).update(own)


def _scatter(computed: Tensor, length: int, rows: Tensor, at: Tensor) -> Tensor:  # (B, S, …) -> (B, length, …)
    return computed.new_zeros(len(rows), length, *computed.shape[2:]).index_put((rows, at), computed)


def _at_scored_tokens(
    whole: Callable[[Tensor], Tensor],
    rows: Tensor,  # shape: (B, 1)
    at: Tensor,  # shape: (B, S)
) -> Callable[[Tensor], Tensor]:
    def run(hidden: Tensor) -> Tensor:  # shape: (B, T, d)
        row, position = rows.to(hidden.device), at.to(hidden.device)
        return _scatter(whole(hidden[row, position]), hidden.shape[1], row, position)

    return run


def _for_scored_queries(
    rows: Tensor,  # shape: (B, 1)
    at: Tensor,  # shape: (B, S)
) -> Callable[..., tuple[Tensor, None]]:
    def attend(
        module: nn.Module,
        query: Tensor,  # shape: (B, H, T, D)
        key: Tensor,  # shape: (B, H', K, D), K − T of them from before the batch
        value: Tensor,
        attention_mask: Tensor | None,  # shape: (B or 1, 1 or H, T or 1, K)
        is_causal: bool | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        row, position = rows.to(query.device), at.to(query.device)
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        if attention_mask is None and causal:
            seen = position + key.shape[2] - query.shape[2]
            places = torch.arange(key.shape[2], dtype=torch.int64, device=query.device)
            attention_mask = (places <= seen[:, :, None])[:, None]
        elif attention_mask is not None and attention_mask.shape[2] > 1:
            attention_mask = attention_mask.expand(len(row), -1, -1, -1)[row, :, position].transpose(1, 2)
        scored = query[row, :, position].transpose(1, 2)
        found, _ = sdpa_attention_forward(module, scored, key, value, attention_mask, is_causal=False, **options)
        return _scatter(found, query.shape[2], row, position), None

    return attend
