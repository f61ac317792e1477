"""Which weights of a model the posterior is over, and which models it cannot serve."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Embedding, MultiheadAttention, ParamWrapper, _ConvNd
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from bayesrm_fast.errors import InputError


@dataclass(frozen=True)
class Site:
    """One weight matrix of the posterior; its gradient is `Σ_t p_t q_tᵀ` with `p [T, r]` and `q [T, d]`.

    Attributes:
        name: path of the adapted layer and which of its matrices this is.
        r: size of the small side.
        d: size of the large side.
        activations: the side that holds activations. KFAC averages it over tokens and sums the other one.
    """

    name: str
    r: int
    d: int
    activations: Literal["p", "q"]


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
        """What `adapter_hash` reads, by name."""
        return {site.name: weight for site, weight in zip(self.sites, self.weights, strict=True)}


@dataclass(frozen=True)
class VirtualTap:
    """A layer with a virtual adapter: `h = W a + B A a` with B = 0, and one site, for B transposed.

    The layer is called and never read, so that any layer from vectors to vectors will do.

    Attributes:
        name: path of the layer.
        module: the layer.
        down: A `[r, d_in]`, fixed; layers on one input share the tensor.
        d_out: size of the layer's output.
    """

    name: str
    module: nn.Module
    down: Tensor
    d_out: int

    @property
    def sites(self) -> tuple[Site, ...]:
        """The site of B."""
        return (Site(f"{self.name}.virtual_B", self.down.shape[0], self.d_out, "p"),)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """B `[d_out, r]`, zero."""
        return (self.down.new_zeros(()).expand(self.d_out, self.down.shape[0]),)

    @property
    def hashed(self) -> dict[str, Tensor]:
        """What `adapter_hash` reads, by name."""
        return {f"{self.name}.virtual_A": self.down}


@dataclass(frozen=True)
class HeadTap:
    """The linear layer that gives the scores: one site, its small side is the number of outputs."""

    name: str
    module: nn.Linear

    @property
    def sites(self) -> tuple[Site, ...]:
        """The site of the head's weight."""
        return (Site(f"{self.name}.weight", self.module.out_features, self.module.in_features, "q"),)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The weight of `sites`."""
        return (self.module.weight,)

    @property
    def hashed(self) -> dict[str, Tensor]:
        """What `adapter_hash` reads, by name."""
        # The base model's, mostly: rounded, so that it has one hash in float32 and in bfloat16.
        return {self.sites[0].name: self.module.weight.bfloat16()}


Tap = LoraTap | VirtualTap | HeadTap


def has_adapter(model: nn.Module) -> bool:
    """Whether any layer of the model carries an adapter of peft's, of whatever kind."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


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
    refuse([t.name for t in taps if t.layer.lora_B[t.adapter].bias is not None], "a LoRA bias")
    plain = [t for t in taps if all(type(side[t.adapter]) is nn.Linear for side in (t.layer.lora_A, t.layer.lora_B))]
    refuse([t.name for t in taps if t not in plain], "a kind of LoRA layer that is unknown here")
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
    heads = [m for _, m in wrappers if isinstance(m, ModulesToSaveWrapper) and head and head.module in m.modules()]
    others = [plain_name(name) for name, module in wrappers if module not in heads]
    for name, config in getattr(model, "peft_config", {}).items():
        if name in {tap.adapter for tap in taps} and getattr(config, "bias", "none") != "none":
            others.append(f"biases (bias={config.bias!r})")
    allowed = {id(weight) for tap in taps for weight in tap.weights}
    allowed |= {id(parameter) for module in heads for parameter in module.parameters()}
    if head:
        allowed |= {id(parameter) for parameter in head.module.parameters()}
    others += [plain_name(n) for n, p in model.named_parameters() if p.requires_grad and id(p) not in allowed]
    refuse(list(dict.fromkeys(others)), "trainable weights that are neither LoRA nor the score head")


def find_head(model: nn.Module) -> HeadTap | None:
    """The linear layer that gives the model's scores, or None where there is none that can be recognised."""
    labels = getattr(getattr(model, "config", None), "num_labels", None)
    for name, module in model.named_modules():
        if plain_name(name) in ("score", "classifier"):
            if isinstance(module, ModulesToSaveWrapper):
                active = [adapter for adapter in module.active_adapters if adapter in module.modules_to_save]
                module = module.modules_to_save[active[0]] if active else module.original_module
            linears = [
                (inner, layer)
                for inner, layer in module.named_modules()
                if isinstance(layer, nn.Linear) and layer.out_features == labels
            ]
            if linears:
                inner, layer = linears[-1]
                return HeadTap(plain_name(f"{name}.{inner}" if inner else name), layer)
    return None


def find_head_tap(model: nn.Module, taps: Iterable[Tap]) -> HeadTap:
    """The head as a site of the posterior.

    Raises:
        InputError: the model's head is no linear layer that can be recognised, or it is itself adapted by LoRA.
    """
    head = find_head(model)
    if head is None or any(head.module in tap.module.modules() for tap in taps):
        raise InputError("include_head needs a score head that is a plain linear layer without an adapter")
    return head


def adapter_hash(taps: Iterable[Tap]) -> str:
    """SHA-256 over names, shapes and values of the adapters and the head, whatever dtype they are held in."""
    digest = hashlib.sha256()
    weights = {name: weight for tap in taps for name, weight in tap.hashed.items()}
    for name in sorted(weights):
        weight = weights[name].detach().cpu()
        weight = weight if weight.dtype == torch.float64 else weight.float()
        digest.update(f"{name}{list(weight.shape)}".encode())
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


def plain_name(name: str) -> str:
    """A module's path without peft's wrapping."""
    return name.removeprefix("base_model.model.").removeprefix("base_model.")


def refuse(names: list[str], what: str) -> None:
    """Raise InputError where there are any names of layers or weights that are what the posterior cannot serve."""
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise InputError(f"cannot serve {what}: {', '.join(names[:8])}{more}")
