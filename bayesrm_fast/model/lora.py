"""Layers with LoRA adapters, as peft made them, and which of them cannot be served."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Embedding, MultiheadAttention, ParamWrapper, _ConvNd
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.head import find_head
from bayesrm_fast.model.layers import is_after_backbone, plain_name, refuse, weights_after_backbone
from bayesrm_fast.sites import Site


@dataclass(frozen=True)
class LoraTap:
    """A layer with a LoRA adapter: two sites, for A and for B transposed."""

    name: str
    layer: LoraLayer
    adapter: str

    @property
    def down_module(self) -> nn.Linear:
        """The linear layer of A."""
        return cast(nn.Linear, self.layer.lora_A[self.adapter])

    @property
    def down(self) -> Tensor:  # shape: (r, d_in)
        """A."""
        return self.down_module.weight

    @property
    def up(self) -> Tensor:  # shape: (d_out, r)
        """B."""
        return cast(Tensor, self.layer.lora_B[self.adapter].weight)

    @property
    def has_hooks(self) -> bool:
        """Whether A or B may give or get other than a product with its weight."""
        parts = (self.down_module, self.layer.lora_B[self.adapter])
        return any(part._forward_hooks or part._forward_pre_hooks for part in parts)

    @property
    def scaling(self) -> float:
        """s, rank-stabilised or not, as peft computed it."""
        return float(self.layer.scaling[self.adapter])

    @property
    def module(self) -> nn.Module:
        """The module whose call is tapped."""
        return cast(nn.Module, self.layer)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of A and of B."""
        return (
            Site(f"{self.name}.lora_A", self.down.shape[0], self.down.shape[1], "q"),
            Site(f"{self.name}.lora_B", self.up.shape[1], self.up.shape[0], "p"),
        )

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The weights of `sites`, in that order."""
        return (self.down, self.up)

    @property
    def hashed(self) -> dict[str, Tensor]:
        """The adapter's weights as its fingerprint reads them, by name."""
        return {site.name: weight for site, weight in zip(self.sites, self.weights, strict=True)}


def find_lora_taps(model: nn.Module) -> list[LoraTap]:
    """Every layer that an active LoRA adapter adapts, in the order of the model's modules.

    Raises:
        InputError: the model has no active LoRA adapter, or something that the posterior would miss; the message
            lists the layers.
    """
    layers = [
        (plain_name(name), module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    ]
    foreign = [name for name, layer in layers if not isinstance(layer, LoraLayer)]
    refuse(foreign, "an adapter that is not LoRA")
    lora = [(name, layer) for name, layer in layers if isinstance(layer, LoraLayer)]
    if not lora:
        raise InputError(
            "the model has no LoRA adapter: load a peft LoRA adapter of a sequence classifier, or give virtual_rank=8 "
            "(--virtual-rank 8) for a posterior over virtual adapters of the model as it is"
        )
    refuse([n for n, layer in lora if layer.merged], "a merged adapter (call unmerge_adapter first)")
    refuse([n for n, layer in lora if layer.disable_adapters], "a disabled adapter (enable it first)")
    refuse([n for n, layer in lora if isinstance(layer, Embedding)], "LoRA on an embedding")
    refuse([n for n, layer in lora if isinstance(layer, _ConvNd)], "LoRA on a convolution")
    refuse(
        [n for n, layer in lora if isinstance(layer, MultiheadAttention | ParamWrapper)],
        "LoRA on a module that is not one linear layer",
    )
    taps = []
    several = []
    for name, layer in lora:
        adapters = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
        several += [name] if len(adapters) > 1 else []
        taps += [LoraTap(name, layer, adapter) for adapter in adapters[:1]]
    refuse(several, "more than one active adapter")
    if not taps:
        raise InputError("no LoRA adapter of the model is active")
    for tap in taps:
        variant = tap.layer.lora_variant.get(tap.adapter)
        if variant is not None:
            kind = type(variant).__name__.removesuffix("LinearVariant").removesuffix("Variant")
            same = [t.name for t in taps if type(t.layer.lora_variant.get(t.adapter)) is type(variant)]
            refuse(same, f"the LoRA variant {kind}")
    for tap in taps:
        if not all(type(side[tap.adapter]) is nn.Linear for side in (tap.layer.lora_A, tap.layer.lora_B)):
            cls = type(tap.layer)
            same = [t.name for t in taps if type(t.layer) is cls]
            refuse(same, f"LoRA layers of the kind {cls.__module__.removeprefix('peft.tuners.')}.{cls.__name__}")
    refuse([t.name for t in taps if t.layer.lora_B[t.adapter].bias is not None], "a LoRA bias")
    refuse(
        [t.name for t in taps if any(weight.is_meta for weight in t.weights)],
        "adapters that are offloaded (load the model without offloading, on one device or on several)",
    )
    refuse(
        [
            site.name
            for t in taps
            for site, weight in zip(t.sites, t.weights, strict=True)
            if not weight.isfinite().all()
        ],
        "weights that are NaN or infinite",
    )
    _refuse_other_trained_weights(model, taps)
    return taps


def _refuse_other_trained_weights(model: nn.Module, taps: list[LoraTap]) -> None:
    head = find_head(model)
    wrappers = [(n, m) for n, m in model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)]
    saved = [m for n, m in wrappers if isinstance(m, ModulesToSaveWrapper) and is_after_backbone(model, n)]
    others = [plain_name(name) for name, module in wrappers if module not in saved]
    for name, config in getattr(model, "peft_config", {}).items():
        if name in {tap.adapter for tap in taps} and getattr(config, "bias", "none") != "none":
            others.append(f"biases (bias={config.bias!r})")
    allowed = {id(weight) for tap in taps for weight in tap.weights}
    allowed |= {id(parameter) for module in saved for parameter in module.parameters()}
    if head:
        allowed |= {id(parameter) for parameter in head.module.parameters()}
    allowed |= {id(parameter) for parameter in weights_after_backbone(model)}
    others += [plain_name(n) for n, p in model.named_parameters() if p.requires_grad and id(p) not in allowed]
    refuse(list(dict.fromkeys(others)), "trainable weights that are neither LoRA nor after the backbone")


@contextlib.contextmanager
def active(model: nn.Module, adapter: str | None) -> Iterator[None]:
    """One adapter of a model made active; active adapters and what requires gradients are as before afterwards."""
    if adapter is None or not isinstance(model, PeftModel) or (before := list(model.active_adapters)) == [adapter]:
        yield
        return
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    model.set_adapter(adapter, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(before[0], inference_mode=True)
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trainable)
