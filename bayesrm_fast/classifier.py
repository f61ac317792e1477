"""A sequence classifier as a function from token batches to rewards, and the model left as it was found."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from bayesrm_fast.batching import TokenBatch
from bayesrm_fast.errors import InputError
from bayesrm_fast.scored_token import ScoredToken, scored_token_alone

CHECKPOINT_FUNCTION = "_gradient_checkpointing_func"
"""Where transformers looks for what runs a checkpointed layer."""


@dataclass(frozen=True)
class Shortcuts:
    """Ways to a model's rewards that cost less than its plain call and give the same numbers.

    `shortcuts.find_shortcuts` tries each on the model; none is taken on trust.

    Attributes:
        no_mask: rows padded on the right need no attention mask, because attention is causal.
        scored_token: the token of each row that the reward reads, where the last layer's queries and feed-forward block
            may be left out at all others; None where they may not.
        shared_prefix: rows that begin alike may share the keys and values of their beginning.
        reasons: why a shortcut is not taken, by its name.
    """

    no_mask: bool = False
    scored_token: ScoredToken | None = None
    shared_prefix: bool = False
    reasons: tuple[tuple[str, str], ...] = ()

    def told(self) -> dict[str, str]:
        """For each shortcut what it does for this model, or why it is not taken."""
        why = dict(self.reasons)
        token = self.scored_token and f"queries and feed-forward block at the {self.scored_token} token alone"
        return {
            "attention mask": "left out" if self.no_mask else f"kept: {why.get('no_mask')}",
            "last layer": token or f"at every token: {why.get('scored_token')}",
            "beginnings that rows share": "once" if self.shared_prefix else f"in every row: {why.get('shared_prefix')}",
        }


def checked_output_weights(weights: Sequence[float] | Tensor | None, labels: int) -> Tensor:
    """Weights of a model's outputs in the reward, `[labels]`; raises InputError where they do not fit the model."""
    if weights is None:
        if labels != 1:
            raise InputError(f"the model has {labels} outputs: give output_weights, the weight of each in the reward")
        return torch.ones(1)
    checked = torch.as_tensor(weights, dtype=torch.float32)
    if checked.shape != (labels,) or not checked.isfinite().all():
        raise InputError(f"output_weights must be {labels} finite numbers, one for each output of the model")
    return checked


class Classifier:
    """The scalar reward `output_weights · logits` of each row.

    Args:
        model: called with `input_ids`, `attention_mask` and perhaps `token_type_ids`; its result has `.logits [B, L]`.
        output_weights: weight of each output in the reward, `[L]`.
        shortcuts: those that are exact for this model.
    """

    def __init__(self, model: nn.Module, output_weights: Tensor, shortcuts: Shortcuts | None = None) -> None:
        self.model = model
        self.output_weights = output_weights
        self.shortcuts = shortcuts or Shortcuts()

    @property
    def dtype(self) -> torch.dtype:
        """Of sums over what the model computes: float64 for a float64 model, float32 otherwise."""
        doubles = any(parameter.dtype == torch.float64 for parameter in self.model.parameters())
        return torch.float64 if doubles else torch.float32

    def rewards(self, batch: TokenBatch) -> Tensor:  # shape: (B,)
        """Rewards by a forward pass without autograd, detached; float32 (float64 for a float64 model)."""
        with self.prepared(batch), torch.no_grad():
            return self.forward(batch)

    def forward(self, batch: TokenBatch) -> Tensor:  # shape: (B,)
        """Rewards as autograd sees them; to be called inside `prepared`."""
        inputs = batch.model_inputs()
        if self.shortcuts.no_mask:
            inputs.pop("attention_mask")
        return self._rewards(use_cache=False, **inputs)

    def prefill(self, batch: TokenBatch) -> DynamicCache:
        """Keys and values of B beginnings, padded on the right; without autograd."""
        with _undisturbed(self.model, batch.pad_token_id), torch.no_grad():
            cache = self.model(**batch.model_inputs(), use_cache=True).past_key_values
        if not isinstance(cache, DynamicCache):
            raise TypeError(f"the model keeps its keys and values in {type(cache).__name__}, not in a DynamicCache")
        return cache

    def rewards_after(
        self,
        beginnings: DynamicCache,
        lengths: Tensor,  # shape: (G,), real tokens of each beginning
        owners: Tensor,  # shape: (B,), the beginning that each row continues
        batch: TokenBatch,
    ) -> Tensor:  # shape: (B,)
        """Rewards of rows of which `batch` holds what follows a beginning; without autograd."""
        cache = _rows_of(beginnings, owners)
        before = lengths[owners]
        longest = int(lengths.max())
        present = torch.arange(longest, device=before.device) < before[:, None]
        mask = torch.cat([present.to(batch.attention_mask.dtype), batch.attention_mask], 1)
        positions = before[:, None] + torch.arange(batch.input_ids.shape[1], device=before.device)
        with self.prepared(batch), torch.no_grad():
            return self._rewards(
                input_ids=batch.input_ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )

    def _rewards(self, use_cache: bool, **inputs: Any) -> Tensor:
        if getattr(self.model.config, "use_cache", None) is not None:
            inputs["use_cache"] = use_cache
        logits: Tensor = self.model(**inputs).logits
        dtype = torch.promote_types(logits.dtype, torch.float32)
        # A copy, because weights made under inference mode could not be kept for the backward pass.
        return logits.to(dtype) @ self.output_weights.to(logits.device, dtype, copy=True)

    @contextlib.contextmanager
    def prepared(self, batch: TokenBatch, *, every_token: bool = False, checkpoints: bool = False) -> Iterator[None]:
        """The model as a pass over `batch` needs it, backward pass included; as it was found afterwards.

        Args:
            batch: of the pass.
            every_token: run every layer on every token, whether the reward reads the result or not.
            checkpoints: run the layers again in the backward pass, whether the model does so by itself or not.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(_undisturbed(self.model, batch.pad_token_id, checkpoints))
            if self.shortcuts.scored_token is not None and not every_token:
                stack.enter_context(scored_token_alone(self.model, batch, self.shortcuts.scored_token))
            yield


def _rows_of(beginnings: DynamicCache, owners: Tensor) -> DynamicCache:
    """A cache with a row for each of `owners`; `beginnings` stays as it is."""
    selected = DynamicCache()
    for index, layer in enumerate(beginnings.layers):
        keys, values = cast(DynamicLayer, layer).keys, cast(DynamicLayer, layer).values
        assert keys is not None
        assert values is not None
        selected.update(keys[owners], values[owners], index)
    return selected


def _checkpoint_in_evaluation(layer: nn.Module) -> Callable[..., Any]:
    """A checkpointing function under which `layer` runs, and is run again, as in evaluation mode."""

    def run(function: Callable[..., Any], *args: Any) -> Any:
        def evaluate(*inner: Any) -> Any:
            layer.training = False
            try:
                return function(*inner)
            finally:
                layer.training = True

        return checkpoint(evaluate, *args, use_reentrant=False)

    return run


@contextlib.contextmanager
def _undisturbed(model: nn.Module, pad_token_id: int, checkpoints: bool = False) -> Iterator[None]:
    """Evaluation mode, no parameter gradients and a padding token; everything as it was afterwards."""
    config = model.config.get_text_config()  # type: ignore[operator,union-attr]
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    padding = config.pad_token_id
    checkpointed = [
        module
        for module in modules
        if (checkpoints and isinstance(module, GradientCheckpointingLayer))
        or (getattr(module, "gradient_checkpointing", False) and hasattr(module, CHECKPOINT_FUNCTION))
    ]
    own = [
        {name: vars(module)[name] for name in ("gradient_checkpointing", CHECKPOINT_FUNCTION) if name in vars(module)}
        for module in checkpointed
    ]
    try:
        for module in training:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        config.pad_token_id = pad_token_id
        for module in checkpointed:
            # transformers recomputes a layer only while the layer itself is in training mode.
            module.training = True
            module.gradient_checkpointing = True  # type: ignore[assignment]
            setattr(module, CHECKPOINT_FUNCTION, _checkpoint_in_evaluation(module))
        yield
    finally:
        for module, attributes in zip(checkpointed, own, strict=True):
            for name in ("gradient_checkpointing", CHECKPOINT_FUNCTION):
                vars(module).pop(name, None)
            vars(module).update(attributes)
            module.training = False
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)
        config.pad_token_id = padding
