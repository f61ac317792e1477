"""A model's layers and their paths, whether peft has wrapped them or not."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bayesrm_fast.errors import InputError


def plain_name(name: str) -> str:
    """A module's path without the wrapping of peft and of `torch.compile`."""
    name = f"{name}.".replace("_orig_mod.", "").removesuffix(".")
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


def active_copy(wrapper: ModulesToSaveWrapper) -> nn.Module:
    """The one of a layer's copies (`modules_to_save`) that a forward pass calls."""
    held = [name for name in wrapper.active_adapters if name in wrapper.modules_to_save]
    if not held or wrapper.disable_adapters:
        return cast(nn.Module, wrapper.original_module)
    return cast(nn.Module, wrapper.modules_to_save[held[0]])


def unread_copies(model: nn.Module) -> Iterator[nn.Module]:
    """Modules of the copies that a forward pass does not call."""
    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            active = active_copy(wrapper)
            for copy in (wrapper.original_module, *wrapper.modules_to_save.values()):
                if copy is not active:
                    yield from copy.modules()


def name_of_copied(name: str) -> str:
    """A path without peft's names for the copies of a layer."""
    return re.sub(r"\.modules_to_save\.[^.]+|\.original_module", "", name)


def _wrapping(model: nn.Module) -> str:
    """The beginning that all paths of weights have in common, such as peft's and that of a module around a model."""
    path = ""
    while True:
        children = [(name, child) for name, child in model.named_children() if any(True for _ in child.parameters())]
        if len(children) != 1:
            return path
        path, model = f"{path}{children[0][0]}.", children[0][1]


def is_after_backbone(model: nn.Module, name: str) -> bool:
    """Whether a module, by its path, is a pooler, or outside of the part of the model that holds its layers."""
    return _after_backbone(model, last_layer(model))(name)


def _after_backbone(model: nn.Module, last: nn.Module | None) -> Callable[[str], bool]:
    """The same of all its modules, whose walk takes a while."""
    around = _wrapping(model)
    paths = (path for path, module in model.named_modules() if module is last)
    backbone = next((path.removeprefix(around).split(".")[0] for path in paths), None)

    def is_after(name: str) -> bool:
        first, *rest = name.removeprefix(around).split(".")
        return last is not None and (first != backbone or any("pooler" in part for part in rest))

    return is_after


def weights_after_backbone(model: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of modules that stand after the last of the transformer's layers and outside of its backbone."""
    last = last_layer(model)
    is_after = _after_backbone(model, last)
    is_past = False
    for path, module in model.named_modules():
        if is_past and is_after(path):
            yield from module.parameters(recurse=False)
        is_past |= module is last


def has_adapter(model: nn.Module) -> bool:
    """Whether any layer of the model carries an adapter of peft's, of whatever kind."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def adapter_config(model: nn.Module, adapter: str) -> PeftConfig:
    """The configuration of an adapter, wherever in the model peft has put it."""
    held = [getattr(module, "peft_config", {}) for module in model.modules()]
    return cast(PeftConfig, next(configs[adapter] for configs in held if adapter in configs))


def check_model(model: nn.Module) -> None:
    """Raise InputError where a model cannot be tapped as it is.

    It is within copies on several devices or sharded over them, was made under `torch.inference_mode`, or has no
    numbers in its weights.
    """
    if isinstance(model, nn.DataParallel | DistributedDataParallel):
        raise InputError(f"cannot serve a model within {type(model).__name__}: pass its .module")
    prompts = [config.peft_type for config in getattr(model, "peft_config", {}).values() if config.is_prompt_learning]
    if prompts:
        raise InputError(
            f"cannot serve prompt learning ({prompts[0].value}): a posterior is over LoRA or virtual adapters"
        )
    _refuse_shards(model)
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise InputError("the model was made under torch.inference_mode: load it outside, where it has gradients")
    absent = [
        plain_name(f"{path}.{name}")
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_meta and not hasattr(module, "_hf_hook")  # by which accelerate brings what it has offloaded
    ]
    refuse(absent, "weights on the meta device that nothing brings when they are called")


def _refuse_shards(model: nn.Module) -> None:
    """Raise InputError where a rank has a part of each weight, and its layers see a part of what the whole ones do."""
    advice = "load the model whole on every rank, or over the GPUs of one process by device_map='auto'"
    wrapped = [
        plain_name(name) for name, module in model.named_modules() if isinstance(module, FullyShardedDataParallel)
    ]
    refuse(wrapped, f"modules of FullyShardedDataParallel, whose weights are sharded over ranks ({advice})")
    sharded = [plain_name(name) for name, weight in model.named_parameters() if isinstance(weight, DTensor)]
    refuse(sharded, f"weights that FSDP2 or tensor parallelism has sharded over ranks ({advice})")
    partitioned = [plain_name(name) for name, weight in model.named_parameters() if hasattr(weight, "ds_id")]
    refuse(partitioned, f"weights that DeepSpeed's ZeRO-3 has sharded over ranks ({advice})")


def class_name(model: nn.Module) -> str:
    """What a model is, under peft's wrapping."""
    return type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__


def is_language_model(model: nn.Module) -> bool:
    """Whether a model of transformers gives logits for the tokens of its vocabulary."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return isinstance(base, PreTrainedModel) and base.get_output_embeddings() is not None


def is_token_classifier(model: nn.Module) -> bool:
    """Whether a model of transformers is one of `AutoModelForTokenClassification`: logits for each token."""
    return class_name(model).endswith("ForTokenClassification")


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
    """Every linear layer but those that peft has added, with the sizes of its input and output, by its path.

    Of a layer that peft has copied (`modules_to_save`) it is the active copy.
    """
    found: dict[str, tuple[nn.Module, int, int]] = {}
    unread = set(unread_copies(model))
    for path, module in outside_adapters(model):
        if module in unread or isinstance(module, ModulesToSaveWrapper):
            continue
        name = name_of_copied(path)
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
