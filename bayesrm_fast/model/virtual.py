"""Virtual adapters: a LoRA site with B = 0 and a fixed A on the layers of a model as it is.

The forward pass stays the model's own, and the posterior is over B: its Jacobian is `Σ_t (A a_t) g_tᵀ`
(docs/maths.md, section 10). A holds the leading directions of the layer's inputs, which `fit.virtual` finds.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.calls import by_row
from bayesrm_fast.model.forward import Forward
from bayesrm_fast.model.head import find_head
from bayesrm_fast.model.layers import layer_stack, linear_modules, refuse
from bayesrm_fast.model.virtual_options import VirtualOptions
from bayesrm_fast.sites import Site
from bayesrm_fast.text.batches import TokenBatch

logger = logging.getLogger("bayesrm_fast")


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
        """The adapter's weights as its fingerprint reads them, by name."""
        return {f"{self.name}.virtual_A": self.down}


@dataclass(frozen=True)
class VirtualAdapter:
    """The virtual adapters of a model.

    Attributes:
        options: what they were asked for.
        taps: one for each layer.
    """

    options: VirtualOptions
    taps: list[VirtualTap]


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


def linear_layers(forward: Forward, batch: TokenBatch) -> list[LinearLayer]:
    """All linear layers of a model but its score head, in the order of its modules, seen in one call of the model."""
    batch = forward.calls(batch)[0].batch
    head = find_head(forward.model)
    found = linear_modules(forward.model)
    if head is not None:
        found = {name: layer for name, layer in found.items() if layer[0] is not head.module}
    inputs: dict[str, list[Tensor]] = {name: [] for name in found}
    with contextlib.ExitStack() as stack:
        for name, (module, _, _) in found.items():
            hook = keeping_input(inputs[name].append)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        stack.enter_context(forward.prepared(batch, every_token=True))
        with torch.no_grad():
            forward(batch)
    numbers: dict[int, int] = {}
    layers = []
    for name, (module, d_in, d_out) in found.items():
        seen = inputs[name]
        serves = len(seen) == 1 and seen[0].shape[-1] == d_in and by_row(seen[0], batch) is not None
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


def keeping_input(keep: Callable[[Tensor], Any]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A forward pre-hook that hands over what a layer is called on."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args:
            keep(args[0])

    return hook
