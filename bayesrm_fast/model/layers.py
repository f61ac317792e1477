"""A model's layers and their paths, whether peft has wrapped them or not."""

from collections.abc import Iterable

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bayesrm_fast.errors import InputError


def plain_name(name: str) -> str:
    """A module's path without peft's wrapping."""
    return name.removeprefix("base_model.model.").removeprefix("base_model.")


def refuse(names: list[str], what: str) -> None:
    """Raise InputError where there are any names of layers or weights that are what the posterior cannot serve."""
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise InputError(f"cannot serve {what}: {', '.join(names[:8])}{more}")


def layer_stack(model: nn.Module) -> list[nn.Module]:
    """The transformer's layers, first to last: the model's longest list of modules."""
    stacks = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(stacks, key=len, default=[])


def last_layer(model: nn.Module) -> nn.Module | None:
    """The last of the transformer's layers; None where the model has no list of modules."""
    return next(reversed(layer_stack(model)), None)


def has_adapter(model: nn.Module) -> bool:
    """Whether any layer of the model carries an adapter of peft's, of whatever kind."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def check_model(model: nn.Module) -> None:
    """Raise InputError where a model cannot be tapped as it is: copies on several devices, weights that are absent."""
    if isinstance(model, nn.DataParallel | DistributedDataParallel):
        raise InputError(f"cannot serve a model within {type(model).__name__}: pass its .module")
    absent = [plain_name(name) for name, parameter in model.named_parameters() if parameter.is_meta]
    refuse(absent, "weights on the meta device (load the model without offloading)")


def class_name(model: nn.Module) -> str:
    """What a model is, under peft's wrapping."""
    return type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__


def is_language_model(model: nn.Module) -> bool:
    """Whether a model of transformers gives logits for the tokens of its vocabulary."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return isinstance(base, PreTrainedModel) and base.get_output_embeddings() is not None


def embedded_tokens(model: nn.Module) -> int | None:
    """Token ids that a model of transformers has embeddings for; None for any other model."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        return None
    try:
        embeddings = base.get_input_embeddings()
    except NotImplementedError:
        return None
    return getattr(embeddings, "num_embeddings", None)


def linear_modules(model: nn.Module) -> dict[str, tuple[nn.Module, int, int]]:
    """Every linear layer but those that peft has added, with the sizes of its input and output, by its path."""
    found: dict[str, tuple[nn.Module, int, int]] = {}
    for name, module in outside_adapters(model):
        if isinstance(module, Conv1D):
            found[name] = (module, int(module.nx), int(module.nf))
            continue
        d_in, d_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if isinstance(d_in, int) and isinstance(d_out, int):
            found[name] = (module, d_in, d_out)
    return found


def outside_adapters(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Modules by their paths, without those that peft adds to a model."""
    added: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            added.add(module)
            for name, child in module.named_children():
                if name != "base_layer":
                    added |= set(child.modules())
    return [(plain_name(name), module) for name, module in model.named_modules() if module not in added]
