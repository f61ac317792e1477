"""Models and adapters loaded from disk or from the hub."""

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.head import HEADS
from bayesrm_fast.saved.folders import (
    ADAPTER_CONFIG,
    ADAPTER_TENSORS,
    TOKENIZER_CONFIG,
    has_adapter_files,
    hub_options,
)


def load_model(
    name: Path | str, tokenizer_folder: Path | None, **model_options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a reward model that is no adapter, and its tokenizer.

    Args:
        name: a folder or a hub name.
        tokenizer_folder: where a tokenizer is preferred from, if it holds one.
        model_options: for `AutoModelForSequenceClassification.from_pretrained`.

    Raises:
        InputError: no model, one whose weights are not all there, or one of remote code without `trust_remote_code`.
    """
    model, tokenizer, absent = _loaded(f"the model {name}", str(name), tokenizer_folder, None, model_options)
    if absent:
        raise InputError(f"{name} is no reward model: it lacks {', '.join(absent[:4])}, which would be random")
    return model.eval(), tokenizer


def load_adapter(folder: Path, **model_options: Any) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Load a LoRA adapter on its base model, and its tokenizer.

    Args:
        folder: for which `has_adapter_files` holds.
        model_options: for `AutoModelForSequenceClassification.from_pretrained`; `revision` is the base model's, by
            default the one that the adapter names.

    Raises:
        InputError: an unreadable adapter, a base model of remote code without `trust_remote_code`, or a score head that
            neither adapter nor base model holds.
    """
    config = _adapter_config(folder)
    base = str(config.base_model_name_or_path)
    if config.revision is not None:
        model_options.setdefault("revision", config.revision)
    head_shapes = _head_shapes(folder / ADAPTER_TENSORS)
    labels = head_shapes[-1][0] if head_shapes else None
    model, tokenizer, absent = _loaded(f"the adapter's base model {base}", base, folder, labels, model_options)
    heads = [name for name in absent if name.split(".")[0] in HEADS]
    if heads and not head_shapes:
        raise InputError(f"neither {base} nor the adapter in {folder} holds the score head {heads[0]}")
    _resize_embeddings(model, folder / ADAPTER_TENSORS)
    return PeftModel.from_pretrained(model, str(folder)).eval(), tokenizer


def add_adapter(model: PeftModel, folder: Path, name: str) -> None:
    """Load another adapter of the same base model beside those that a model has, and make it active.

    Raises:
        InputError: no adapter, an unreadable one, one of another base model, or a name that is in use.
    """
    has_adapter_files(folder, or_fail=True)
    if name in model.peft_config:
        raise InputError(f"the model has an adapter {name!r} already")
    base = _adapter_config(folder).base_model_name_or_path
    own = next(iter(model.peft_config.values())).base_model_name_or_path
    if base != own:
        raise InputError(f"the adapter in {folder} is of the base model {base}, not of {own}")
    _head_shapes(folder / ADAPTER_TENSORS)
    model.load_adapter(str(folder), adapter_name=name)
    model.set_adapter(name, inference_mode=True)


def _loaded(
    what: str, name: str, tokenizer_folder: Path | None, labels: int | None, options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """A model, its tokenizer, and the names of those weights that were not there and are random."""
    trusted = options.setdefault("trust_remote_code", False)  # None would ask on the terminal
    found = {**hub_options(options), "trust_remote_code": trusted}
    has_tokenizer = tokenizer_folder is not None and (tokenizer_folder / TOKENIZER_CONFIG).is_file()
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            name, output_loading_info=True, **options, **({} if labels is None else {"num_labels": labels})
        )
        if has_tokenizer:
            tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder), trust_remote_code=trusted)
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, **found)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(f"{what} brings code of its own: pass trust_remote_code=True to run it") from error
        raise InputError(f"{what} cannot be loaded: {str(error).splitlines()[0]}") from error
    return model, tokenizer, sorted(loading["missing_keys"])


def _adapter_config(folder: Path) -> PeftConfig:
    try:
        config: PeftConfig = PeftConfig.from_pretrained(str(folder))
        return config
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / ADAPTER_CONFIG} cannot be read: {error}") from error


def _resize_embeddings(model: PreTrainedModel, path: Path) -> None:
    """As many embeddings as the adapter's file has, where it was trained with more tokens than its base model has."""
    own = model.get_input_embeddings()
    (name,) = (name for name, module in model.named_modules() if module is own)
    with safe_open(path, framework="pt") as tensors:
        held = [
            tensors.get_slice(key).get_shape()[0]
            for key in tensors.keys()  # noqa: SIM118
            if key.removeprefix("base_model.model.") in (f"{name}.weight", f"{name}.base_layer.weight")
        ]
    if held and held[0] != own.num_embeddings:
        model.resize_token_embeddings(held[0], mean_resizing=False)


def _head_shapes(path: Path) -> list[list[int]]:
    """Shapes of the score head's weights in an adapter's file, in the file's order; empty where it has none."""
    try:
        with safe_open(path, framework="pt") as tensors:
            names = [
                name
                for name in sorted(tensors.keys())
                if name.endswith("weight") and "lora_" not in name and HEADS & set(name.split("."))
            ]
            shapes = [tensors.get_slice(name).get_shape() for name in names]
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing") from error
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file: {error}") from error
    return [shape for shape in shapes if len(shape) == 2]
