"""Models and adapters loaded from disk or from the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, TaskType, get_peft_model_state_dict
from peft.utils.other import ModulesToSaveWrapper
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bayesrm_fast.errors import InputError, named
from bayesrm_fast.model.head import HEADS
from bayesrm_fast.model.layers import check_model, plain_name
from bayesrm_fast.model.offloaded import offloaded_weights
from bayesrm_fast.saved.adapters import ADAPTER_CONFIG, ADAPTER_TENSORS
from bayesrm_fast.saved.damage import ADAPTER_FILES, MODEL_FILES, TOKENIZER_FILES, check_files, naming_damage
from bayesrm_fast.saved.folders import TOKENIZER_CONFIG, has_adapter_files, hub_options

CHANGING_KINDS = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Values of `init_lora_weights`, or their beginnings, by which peft changes the weights under an adapter."""


def load_model(
    name: Path | str, tokenizer_folder: Path | None, **model_options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a reward model that is no adapter, and its tokenizer.

    Args:
        name: a folder or a hub name.
        tokenizer_folder: where a tokenizer is preferred from, if it holds one.
        model_options: for the `from_pretrained` of transformers' auto class.

    Raises:
        InputError: no model, one whose weights are not all there, or one of remote code without `trust_remote_code`.
    """
    model, tokenizer, absent = _loaded(f"the model {name}", str(name), tokenizer_folder, None, None, model_options)
    if absent:
        raise InputError(f"{name} is no reward model: it lacks {named(absent)}, which would be random")
    return model.eval(), tokenizer


def load_adapter(
    folder: Path, of_tokens: bool = False, **model_options: Any
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Load a LoRA adapter on its base model, and its tokenizer.

    Args:
        folder: for which `has_adapter_files` holds.
        of_tokens: whether it is known to be of a token classifier, where its own task type may not say so.
        model_options: for the `from_pretrained` of transformers' auto class; `revision` is the base model's, by
            default the one that the adapter names.

    Raises:
        InputError: an unreadable adapter, one that cannot be restored, a base model of remote code without
            `trust_remote_code` or with offloaded or sharded weights, or layers that neither adapter nor base model
            holds.
    """
    config = _adapter_config(folder)
    base = config.base_model_name_or_path
    if not isinstance(base, str):
        raise InputError(f"{folder / ADAPTER_CONFIG} names no base model")
    if config.revision is not None:
        model_options.setdefault("revision", config.revision)
    shapes = _shapes(folder / ADAPTER_TENSORS)
    labels = _labels(shapes)
    if labels == 0:
        raise InputError(f"{folder / ADAPTER_TENSORS} holds a score head without outputs")
    what = f"the adapter's base model {base}"
    task = TaskType.TOKEN_CLS if of_tokens else config.task_type
    model, tokenizer, absent = _loaded(what, base, folder, labels, task, model_options)
    check_model(model)
    offloaded = offloaded_weights(model)
    if offloaded:
        raise InputError(
            f"cannot serve a LoRA adapter on weights that device_map has offloaded ({named(offloaded)}): give the "
            "model more GPUs, quantise it, or fit virtual adapters of the model as it is"
        )
    random = [name for name in absent if name not in shapes]
    if random:
        raise InputError(
            f"neither {base} nor the adapter in {folder} holds {named(random)}, which would be random at every load: "
            "train the adapter with modules_to_save for them"
        )
    _resize_embeddings(model, shapes)
    with naming_damage(f"the adapter in {folder}", folder, ADAPTER_FILES, "cannot be put on its base model"):
        adapted = PeftModel.from_pretrained(model, str(folder))
    _check_all_loaded(adapted, "default", folder, shapes)
    return adapted.eval(), tokenizer


def add_adapter(model: PeftModel, folder: Path, name: str) -> None:
    """Load another adapter of the same base model beside those that a model has, and make it active.

    Raises:
        InputError: no adapter, an unreadable one, one of another base model, one that changes the base model or lacks
            layers that the others hold, or a name that is in use.
    """
    has_adapter_files(folder, or_fail=True)
    if name in model.peft_config:
        raise InputError(f"the model has an adapter {name!r} already")
    config = _adapter_config(folder)
    base = config.base_model_name_or_path
    first = next(iter(model.peft_config.values()))
    if base != first.base_model_name_or_path:
        raise InputError(f"the adapter in {folder} is of the base model {base}, not of {first.base_model_name_or_path}")
    changing = next((kind for kind in map(_changes_base, (config, first)) if kind is not None), None)
    if changing is not None:
        raise InputError(f"adapters initialised by {changing!r} change the base model, and cannot share it")
    shapes = _shapes(folder / ADAPTER_TENSORS)
    embeddings = next((name for name in shapes if name.endswith(f"{_embeddings_of(model)}.weight")), None)
    if embeddings is not None:
        raise InputError(
            f"the adapter in {folder} brings {embeddings.split('model.')[-1]} of its own, and cannot share a base "
            "model: load it as a model of its own"
        )
    copied = [plain_name(path) for path, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    absent = [path for path in copied if not any(held.startswith(f"{path}.") for held in shapes)]
    if absent:
        raise InputError(f"the adapter in {folder} lacks {named(absent)}, which the adapters beside it hold")
    with naming_damage(f"the adapter in {folder}", folder, ADAPTER_FILES, "cannot be put on its base model"):
        model.load_adapter(str(folder), adapter_name=name)
    _check_all_loaded(model, name, folder, shapes)
    model.set_adapter(name, inference_mode=True)


def check_restorable(config: PeftConfig, what: str) -> None:
    """Raise InputError where no load of an adapter could give the base weights that it was trained on.

    Some initialisations subtract from the base weights what they put into A and B, and peft does so again at every
    load: by an approximation that is drawn by lot, from statistics that were not saved, or not at all.
    """
    kind = _changes_base(config)
    if kind is not None and (kind.startswith("pissa_niter") or kind in ("corda", "lora_ga")):
        raise InputError(
            f"{what} was initialised by {kind!r}, which changes the base weights in a way that no load restores: "
            "save it with peft's path_initial_model_for_weight_conversion, as an adapter of the unchanged base model"
        )


def _changes_base(config: PeftConfig) -> str | None:
    kind = str(getattr(config, "init_lora_weights", "")).lower()
    return kind if kind.startswith(CHANGING_KINDS) else None


def _check_all_loaded(model: PeftModel, name: str, folder: Path, shapes: Mapping[str, list[int]]) -> None:
    """Raise InputError unless an adapter's file held all weights of its layers, and no other LoRA weights."""
    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    expected = {plain_name(path) for path in own}
    absent = sorted(expected - set(shapes))
    if absent:
        raise InputError(f"{folder / ADAPTER_TENSORS} lacks {named(absent)}, which {ADAPTER_CONFIG} asks for")
    unused = sorted(path for path in shapes if path not in expected and ".lora_" in path)
    if unused:
        raise InputError(f"{folder / ADAPTER_TENSORS} holds {named(unused)}, of which {ADAPTER_CONFIG} makes no layer")


def _loaded(
    what: str,
    name: str,
    tokenizer_folder: Path | None,
    labels: int | None,
    task: str | None,
    options: dict[str, Any],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """A model, its tokenizer, and the names of those weights that were not there and are random."""
    for folder in (Path(name), tokenizer_folder):
        if folder is not None and folder.is_dir():
            check_files(folder)
    trusted = options.setdefault("trust_remote_code", False)  # None would ask on the terminal
    found = {**hub_options(options), "trust_remote_code": trusted}
    with naming_damage(what, name, MODEL_FILES):
        model, loading = _auto_class(name, task, found).from_pretrained(
            name, output_loading_info=True, **options, **({} if labels is None else {"num_labels": labels})
        )
    place, options_there = name, found
    if tokenizer_folder is not None and (tokenizer_folder / TOKENIZER_CONFIG).is_file():
        place, options_there = str(tokenizer_folder), {"trust_remote_code": trusted}
    whose = f"of {what}" if place == name else f"in {place}"
    with naming_damage(f"the tokenizer {whose}", place, TOKENIZER_FILES):
        tokenizer = AutoTokenizer.from_pretrained(place, **options_there)
        tokenizer("a")  # a tokenizer without a token for what it does not know says so now
        _ = tokenizer.all_special_ids  # and one whose special tokens have no ids
    reshaped = [key for key, *_ in loading["mismatched_keys"]]
    return model, tokenizer, sorted({*loading["missing_keys"], *reshaped})


def _auto_class(name: str, task: str | None, options: dict[str, Any]) -> Any:
    """What an adapter was trained on, else what a model says that it is."""
    if task == TaskType.TOKEN_CLS:
        return AutoModelForTokenClassification
    said = [] if task == TaskType.SEQ_CLS else AutoConfig.from_pretrained(name, **options).architectures or []
    of_tokens = any(architecture.endswith("ForTokenClassification") for architecture in said)
    return AutoModelForTokenClassification if of_tokens else AutoModelForSequenceClassification


def _adapter_config(folder: Path) -> PeftConfig:
    try:
        config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        raise InputError(f"{folder / ADAPTER_CONFIG} cannot be read: {error}") from error
    check_restorable(config, f"the adapter in {folder}")
    return config


def _resize_embeddings(model: PreTrainedModel, shapes: Mapping[str, list[int]]) -> None:
    """As many embeddings as the adapter's file has, where it was trained with more tokens than its base model has."""
    own = model.get_input_embeddings()
    name = _embeddings_of(model)
    held = shapes.get(f"{name}.weight") or shapes.get(f"{name}.base_layer.weight")
    if held and held[0] != own.num_embeddings:
        model.resize_token_embeddings(held[0], mean_resizing=False)


def _embeddings_of(model: PreTrainedModel | PeftModel) -> str:
    """Path of a model's token embeddings."""
    own = model.get_input_embeddings()
    return plain_name(next(name for name, module in model.named_modules() if module is own))


def _shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of the weights in an adapter's file, by the names that they have in the model."""
    try:
        with safe_open(path, framework="pt") as tensors:
            return {plain_name(name): tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is truncated or not a safetensors file: {error}") from error


def _labels(shapes: Mapping[str, list[int]]) -> int | None:
    """Outputs of the score head that an adapter holds; None where it has none."""
    heads = [
        shape
        for name, shape in sorted(shapes.items())
        if name.endswith("weight") and "lora_" not in name and HEADS & set(name.split("."))
    ]
    return next((shape[0] for shape in reversed(heads) if len(shape) == 2), None)
