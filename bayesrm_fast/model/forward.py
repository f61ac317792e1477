"""A reward model as a function from token batches to scalars, and the model left as it was found."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.calls import Call, calls_of, in_order
from bayesrm_fast.model.exclusive import exclusively
from bayesrm_fast.model.layers import class_name
from bayesrm_fast.model.readout import Readout
from bayesrm_fast.model.scored_token import scored_token_alone
from bayesrm_fast.model.shortcuts import Shortcuts
from bayesrm_fast.text.batches import TokenBatch

CHECKPOINT_FUNCTION = "_gradient_checkpointing_func"
"""Where transformers looks for what runs a checkpointed layer."""


class Forward:
    """The scalars of each row: S numbers, S = 1 for a reward.

    Args:
        model: called with `input_ids`, `attention_mask` and perhaps `token_type_ids`.
        readout: what of its output is scored.
        shortcuts: those that are exact for this model.
    """

    def __init__(self, model: nn.Module, readout: Readout, shortcuts: Shortcuts | None = None) -> None:
        self.model = model
        self.readout = readout
        self.shortcuts = shortcuts or Shortcuts()

    def reading(self, readout: Readout) -> "Forward":
        """The same model read otherwise, at the same tokens."""
        return Forward(self.model, readout, self.shortcuts)

    @property
    def dtype(self) -> torch.dtype:
        """Of sums over what the model computes: float64 for a float64 model, float32 otherwise."""
        doubles = any(parameter.dtype == torch.float64 for parameter in self.model.parameters())
        return torch.float64 if doubles else torch.float32

    def scalars(self, batch: TokenBatch) -> Tensor:  # shape: (B, S)
        """By a forward pass without autograd, detached; float32 (float64 for a float64 model)."""
        with self.prepared(batch), torch.no_grad():
            return self(batch)

    def __call__(self, batch: TokenBatch) -> Tensor:  # shape: (B, S)
        """As autograd sees them; to be called inside `prepared`."""
        calls = self.calls(batch)
        return in_order(calls, [self._of_call(call.batch) for call in calls])

    def calls(self, batch: TokenBatch) -> list[Call]:
        """The calls of the model that a pass over a batch makes, in their order."""
        return calls_of(batch, self.shortcuts)

    def _of_call(self, batch: TokenBatch) -> Tensor:  # shape: (B, S)
        inputs = batch.model_inputs()
        if self.shortcuts.no_mask:
            inputs.pop("attention_mask")
        return self._read(batch, use_cache=False, **inputs)

    @property
    def can_share(self) -> bool:
        """Whether rows may share keys and values: as was tried, and while no layer is run again in backward passes."""
        checkpoints = any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())
        return self.shortcuts.shared_prefix and not checkpoints

    def prefill(self, batch: TokenBatch) -> DynamicCache:
        """Keys and values of B beginnings, padded on the right; without autograd."""
        with self.prepared(batch, every_token=True), torch.no_grad():
            return self.keys_and_values(batch)

    def keys_and_values(self, batch: TokenBatch) -> DynamicCache:
        """The same as autograd sees them; to be called inside `prepared`, for every token."""
        cache = DynamicCache()  # not the output's own: that of a token classifier has none
        self.model(**batch.model_inputs(), past_key_values=cache, use_cache=True)
        if not cache.layers:
            raise TypeError("the model keeps no keys and values in the DynamicCache that it is given")
        return cache

    def scalars_after(
        self,
        beginnings: DynamicCache,
        lengths: Tensor,  # shape: (G,), real tokens of each beginning
        owners: Tensor,  # shape: (B,), the beginning that each row continues
        batch: TokenBatch,
    ) -> Tensor:  # shape: (B, S)
        """Of rows of which `batch` holds what follows a beginning; without autograd."""
        cache = cache_of((keys[owners], values[owners]) for keys, values in held_in(beginnings))
        with self.prepared(batch), torch.no_grad():
            return self.after(cache, lengths[owners], int(lengths.max()), batch)

    def after(
        self,
        cache: DynamicCache,
        before: Tensor,  # shape: (B,)
        longest: int,
        batch: TokenBatch,
    ) -> Tensor:  # shape: (B, S)
        """The same as autograd sees them; to be called inside `prepared`.

        Args:
            cache: keys and values of each row's beginning; more are appended.
            before: how many of them are real.
            longest: how many there are.
            batch: what follows.
        """
        present = torch.arange(longest, dtype=torch.int64, device=before.device) < before[:, None]
        return self._read(
            batch,
            input_ids=batch.input_ids,
            attention_mask=torch.cat([present.to(batch.attention_mask.dtype), batch.attention_mask], 1),
            position_ids=before[:, None]
            + torch.arange(batch.input_ids.shape[1], dtype=torch.int64, device=before.device),
            past_key_values=cache,
            use_cache=True,
            **({} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}),
        )

    def _read(self, batch: TokenBatch, use_cache: bool, **inputs: Any) -> Tensor:
        if self._takes_cache:
            inputs["use_cache"] = use_cache
        output = self.model(**inputs)
        try:
            return self.readout.scalars(output, batch)
        except InputError as error:
            raise InputError(f"{class_name(self.model)}: {error}") from error

    @property
    def _takes_cache(self) -> bool:
        """Whether the model knows transformers' `use_cache`; one of the user's own that wraps another need not."""
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return isinstance(base, PreTrainedModel) and getattr(base.config, "use_cache", None) is not None

    @contextlib.contextmanager
    def prepared(self, batch: TokenBatch, *, every_token: bool = False, checkpoints: bool = False) -> Iterator[None]:
        """The model as a pass over `batch` needs it, backward pass included; as it was found afterwards.

        Args:
            batch: of the pass.
            every_token: run every layer on every token, whether the reward reads the result or not.
            checkpoints: run the layers again in the backward pass, whether the model does so by itself or not.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(exclusively(self.model))
            stack.enter_context(_undisturbed(self.model, batch.pad_token_id, checkpoints))
            if self.shortcuts.scored_token is not None and not every_token and len(self.calls(batch)) == 1:
                stack.enter_context(scored_token_alone(self.model, batch, self.shortcuts.scored_token))
            yield


def text_config(model: nn.Module) -> Any:
    """The configuration of the part of a model that reads text; None for a model without one."""
    config = getattr(model, "config", None)
    get_text_config = getattr(config, "get_text_config", None)
    return None if get_text_config is None else get_text_config()


def held_in(cache: DynamicCache) -> Iterator[tuple[Tensor, Tensor]]:
    """Each layer's keys and values."""
    for layer in cache.layers:
        keys, values = cast(DynamicLayer, layer).keys, cast(DynamicLayer, layer).values
        assert keys is not None
        assert values is not None
        yield keys, values


def cache_of(layers: Iterable[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A cache of each layer's keys and values."""
    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers):
        cache.update(keys, values, index)
    return cache


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
    config = text_config(model)
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    padding = getattr(config, "pad_token_id", None)
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
        if config is not None:
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
        if config is not None:
            config.pad_token_id = padding
