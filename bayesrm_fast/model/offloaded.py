"""Weights that accelerate has put away, in the host's memory or on disk, and brings when their module is called."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesrm_fast.model.layers import plain_name


def offloaded_weights(model: nn.Module) -> list[str]:
    """Paths of the weights that are on the meta device and are brought."""
    return [
        plain_name(f"{path}.{name}")
        for path, module in model.named_modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.is_meta and hasattr(module, "_hf_hook")
    ]


def input_device(model: nn.Module) -> torch.device:
    """Where a model's batches go: to its first weight, or where that is brought to."""
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            places = [hook.execution_device for hook in _hooks(module) if hook.execution_device is not None]
            if not weight.is_meta or not places:
                return weight.device
            return torch.device("cuda", places[0]) if isinstance(places[0], int) else torch.device(places[0])
    return torch.device("cpu")


def staying_weight(model: nn.Module) -> Tensor | None:
    """The first weight that no call brings; None where all are brought.

    It goes by the modules, because a weight that another thread's call has just brought looks like one that stays.
    """
    for module in model.modules():
        if not any(_offloading_hooks(module)):
            for weight in module.parameters(recurse=False):
                return weight
    return None


def bringing(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """A function from a weight of the model to its numbers: itself, or where it is offloaded what is kept of it.

    It reads one weight at a time, and knows the model as it is now.
    """
    kept: dict[int, tuple[Mapping[str, Tensor], str]] = {}
    for module in model.modules():
        for hook in _offloading_hooks(module):
            if hook.weights_map is not None:
                for name, weight in module.named_parameters(recurse=hook.place_submodules):
                    kept[id(weight)] = (hook.weights_map, name)

    def bring(weight: Tensor) -> Tensor:
        if not weight.is_meta or id(weight) not in kept:
            return weight
        weights, name = kept[id(weight)]
        return weights[name].to(weight.dtype)

    return bring


def _offloading_hooks(module: nn.Module) -> Iterator[Any]:
    yield from (hook for hook in _hooks(module) if getattr(hook, "offload", False))


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Those of accelerate that say where a module runs."""
    hook = getattr(module, "_hf_hook", None)
    yield from (one for one in getattr(hook, "hooks", [hook]) if hasattr(one, "execution_device"))
