"""Virtual adapters: a LoRA site with B = 0 and a fixed A on the layers of a model as it is.

The forward pass stays the model's own, and the posterior is over B: its Jacobian is `Σ_t (A a_t) g_tᵀ`
(docs/maths.md, section 10). A holds the leading directions of the layer's inputs.
"""

import contextlib
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bayesrm_fast.batching import TokenBatch
from bayesrm_fast.classifier import Classifier
from bayesrm_fast.curvature import SecondMoment
from bayesrm_fast.errors import InputError
from bayesrm_fast.fit_memory import weights_that_fit
from bayesrm_fast.fitting import FitOptions
from bayesrm_fast.passes import Passes, Segment, drawn
from bayesrm_fast.scored_token import layer_stack
from bayesrm_fast.sites import VirtualTap, find_head, plain_name, refuse

logger = logging.getLogger("bayesrm_fast")

SAMPLE = 128
"""Pairs whose tokens give A; their directions settle long before that."""

Targets = str | Sequence[str]


@dataclass(frozen=True)
class VirtualOptions:
    """Which virtual adapters a model is to have; checked when it is made.

    Attributes:
        rank: rows of each A.
        targets: "auto", names of layers as peft has them (the last parts of their paths), or a regular expression for
            whole paths.

    Raises:
        InputError: a rank below 1, no targets, or a pattern that is none.
    """

    rank: int
    targets: Targets = "auto"

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise InputError(f"virtual_rank must be a whole number of at least 1, not {self.rank!r}")
        if not self.targets:
            raise InputError("virtual_targets is empty")
        if isinstance(self.targets, str):
            try:
                re.compile(self.targets)
            except re.error as error:
                raise InputError(f"virtual_targets {self.targets!r} is no regular expression: {error}") from error

    def match(self, name: str) -> bool:
        """Whether a layer of this path is meant."""
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in self.targets)


@dataclass(frozen=True)
class VirtualAdapter:
    """The virtual adapters of a model.

    Attributes:
        options: what they were asked for.
        taps: one for each layer.
        model_sha256: `model_hash` of the model.
    """

    options: VirtualOptions
    taps: list[VirtualTap]
    model_sha256: str


@dataclass(frozen=True)
class LinearLayer:
    """A layer from vectors to vectors, as a forward pass calls it.

    Attributes:
        name: path of the layer.
        module: the layer.
        d_in, d_out: sizes of its input and output.
        input_number: the same for layers that are called on the very same tensor.
        serves: whether a pass calls it exactly once, on the batch's tokens or on a vector for each row.
    """

    name: str
    module: nn.Module
    d_in: int
    d_out: int
    input_number: int
    serves: bool

    @property
    def target(self) -> str:
        """The path that `virtual_targets` name it by, whether LoRA wraps it or not."""
        return self.name.removesuffix(".base_layer")


def linear_modules(model: nn.Module) -> dict[str, tuple[nn.Module, int, int]]:
    """Every linear layer but those that peft has added, with the sizes of its input and output, by its path."""
    found: dict[str, tuple[nn.Module, int, int]] = {}
    for name, module in _outside_adapters(model):
        if isinstance(module, Conv1D):
            found[name] = (module, int(module.nx), int(module.nf))
            continue
        d_in, d_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if isinstance(d_in, int) and isinstance(d_out, int):
            found[name] = (module, d_in, d_out)
    return found


def linear_layers(classifier: Classifier, batch: TokenBatch) -> list[LinearLayer]:
    """All linear layers of a model but its score head, in the order of its modules, seen in one forward pass."""
    head = find_head(classifier.model)
    found = linear_modules(classifier.model)
    if head is not None:
        found = {name: layer for name, layer in found.items() if layer[0] is not head.module}
    inputs: dict[str, list[Tensor]] = {name: [] for name in found}
    with contextlib.ExitStack() as stack:
        for name, (module, _, _) in found.items():
            hook = _keeping_input(inputs[name].append)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        stack.enter_context(classifier.prepared(batch, every_token=True))
        with torch.no_grad():
            classifier.forward(batch)
    numbers: dict[int, int] = {}
    layers = []
    for name, (module, d_in, d_out) in found.items():
        seen = inputs[name]
        shapes = [(*batch.input_ids.shape, d_in), (batch.input_ids.shape[0], d_in)]
        serves = len(seen) == 1 and tuple(seen[0].shape) in shapes
        number = numbers.setdefault(id(seen[0]) if seen else id(module), len(numbers))
        layers.append(LinearLayer(name, module, d_in, d_out, number, serves))
    return layers


def chosen_layers(
    model: nn.Module, layers: Sequence[LinearLayer], options: VirtualOptions, weights_that_fit: int | None
) -> list[LinearLayer]:
    """The layers that `virtual_targets` mean.

    "auto" means every linear layer of the transformer's layers (attention and feed-forward alike), from the last one
    down, as many as fit.

    Args:
        model: whose layers they are.
        layers: from `linear_layers`.
        options: rank and targets.
        weights_that_fit: weights of B that there is memory for; None for as many as there are.

    Raises:
        InputError: no layer is meant, one that cannot be served is, or not even the last of auto's fits.
    """
    if options.targets != "auto":
        meant = [layer for layer in layers if options.match(layer.target)]
        if not meant:
            some = ", ".join(layer.target for layer in layers[:4])
            raise InputError(f"virtual_targets {options.targets!r} match no linear layer; there are {some} and others")
        refuse(
            [layer.name for layer in meant if not layer.serves], "layers that a pass does not call once on its tokens"
        )
        return meant
    kept: set[str] = set()
    weights = blocks = 0
    stack = layer_stack(model)
    for block in reversed(stack):
        modules = set(block.modules())
        inside = [layer for layer in layers if layer.serves and layer.module in modules]
        weights += sum(options.rank * layer.d_out for layer in inside)
        if weights_that_fit is not None and weights > weights_that_fit:
            break
        kept |= {layer.name for layer in inside}
        blocks += 1
    if not kept:
        raise InputError(
            "there is no linear layer in the model's layers that virtual adapters could serve"
            if weights_that_fit is None or weights <= weights_that_fit
            else f"not even the last layer's virtual adapters of rank {options.rank} fit; take fewer virtual_targets"
        )
    if blocks < len(stack):
        logger.info("virtual adapters fit on the last %d of the model's %d layers alone", blocks, len(stack))
    return [layer for layer in layers if layer.name in kept]


def make_virtual_adapter(
    passes: Passes, segments: Sequence[Segment], options: VirtualOptions, fit: FitOptions
) -> VirtualAdapter:
    """Virtual adapters whose A are the leading eigenvectors of the layers' input second moments, one for each input.

    Args:
        passes: the model; what it taps is in the posterior too.
        segments: pairs; the tokens of at most `SAMPLE` of them, drawn by lot, give the moments.
        options: rank and targets.
        fit: that will follow, which "auto" leaves memory for.

    Raises:
        InputError: targets that cannot be served, or a rank beyond a layer's input.
    """
    layers = linear_layers(passes.classifier, passes.collate(segments[:1]))
    room = None
    if fit.structure == "ggn":
        room = weights_that_fit(passes, segments, fit.kept, fit.second_pass)
        room -= sum(site.r * site.d for site in passes.tapped.sites)
    layers = chosen_layers(passes.classifier.model, layers, options, room)
    refuse([layer.name for layer in layers if options.rank > layer.d_in], f"virtual_rank={options.rank} on inputs of")
    directions = input_directions(passes, layers, segments, options.rank)
    taps = [VirtualTap(layer.name, layer.module, directions[layer.input_number], layer.d_out) for layer in layers]
    return VirtualAdapter(options, taps, model_hash(passes.classifier.model))


def input_directions(
    passes: Passes, layers: Sequence[LinearLayer], segments: Sequence[Segment], rank: int
) -> dict[int, Tensor]:
    """For each `input_number` the leading `rank` eigenvectors of the input's second moment, rows of `[rank, d_in]`."""
    sample = drawn(segments, SAMPLE)
    first = {layer.input_number: layer for layer in reversed(layers)}
    moments: dict[int, SecondMoment] = {}

    def run(positions: list[int]) -> None:
        # Of a batch that did not fit in memory some layers' tokens count twice, which directions do not mind.
        batch = passes.collate([sample[i] for i in positions])
        with contextlib.ExitStack() as stack:
            for number, layer in first.items():
                hook = _keeping_input(_adding(moments, number, layer.d_in, rank, batch))
                stack.callback(layer.module.register_forward_pre_hook(hook).remove)
            stack.enter_context(passes.classifier.prepared(batch, every_token=True))
            with torch.no_grad():
                passes.classifier.forward(batch)

    for _ in passes.in_batches(sample, run, None, has_backward=False):
        pass
    dtype = passes.classifier.dtype
    return {number: moment.eigenbasis(rank).vectors.T.to(dtype) for number, moment in moments.items()}


def _adding(
    moments: dict[int, SecondMoment], number: int, size: int, rank: int, batch: TokenBatch
) -> Callable[[Tensor], None]:
    def add(x: Tensor) -> None:
        if number not in moments:
            moments[number] = SecondMoment(size, rank, x.device)
        real = x[batch.attention_mask.bool().to(x.device)] if x.dim() == 3 else x
        moments[number].add(real)

    return add


def _keeping_input(keep: Callable[[Tensor], Any]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args:
            keep(args[0])

    return hook


def _outside_adapters(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Modules by their paths, without those that peft adds to a model."""
    added: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            added.add(module)
            for name, child in module.named_children():
                if name != "base_layer":
                    added |= set(child.modules())
    return [(plain_name(name), module) for name, module in model.named_modules() if module not in added]


def model_hash(model: nn.Module) -> str:
    """SHA-256 over names and values of a model's weights without its adapters.

    Floating-point weights are rounded to bfloat16, so that a checkpoint has one hash whether it is loaded in float32 or
    in bfloat16.
    """
    digest = hashlib.sha256()
    for path, module in _outside_adapters(model):
        for part, weight in module.named_parameters(recurse=False):
            name = f"{path}.{part}".replace(".base_layer.", ".").replace(".original_module.", ".")
            if ".modules_to_save." in name:
                continue
            held = weight.detach()
            held = held.bfloat16().view(torch.int16) if held.is_floating_point() else held
            digest.update(f"{name}{list(weight.shape)}".encode())
            digest.update(held.cpu().contiguous().numpy().data)
    return digest.hexdigest()
