"""Models and adapters on disk: loading one, and writing an adapter whole or not at all."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from bayesrm_fast.errors import InputError
from bayesrm_fast.posterior import Posterior
from bayesrm_fast.posterior_files import RECORD_FILE, TENSORS_FILE, save_posterior
from bayesrm_fast.virtual import VirtualAdapter
from bayesrm_fast.virtual_files import VIRTUAL_RECORD, save_virtual

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_TENSORS = "adapter_model.safetensors"
MODEL_CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


def local_folder(path_or_name: str | os.PathLike[str]) -> Path:
    """The folder itself, or a hub repository's adapter files, downloaded.

    Raises:
        InputError: neither a folder nor a repository that can be had.
    """
    folder = Path(path_or_name)
    if folder.is_dir():
        return folder
    if folder.exists() or folder.is_absolute() or len(folder.parts) != 2:
        raise InputError(f"{folder} is not a folder")
    try:
        return Path(
            snapshot_download(str(path_or_name), allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"])
        )
    except Exception as error:  # the hub's errors are many, and what they mean here is one thing
        raise InputError(f"{folder} is not a folder, and no such repository could be downloaded") from error


def local_folder_or_name(path_or_name: str | os.PathLike[str], takes_models: bool) -> Path | str:
    """A folder as `local_folder` has it; where models without an adapter will do, a hub model's name stays a name.

    Raises:
        InputError: neither a folder nor a repository that can be had.
    """
    if Path(path_or_name).is_dir() or not takes_models or find_adapter_config_file(str(path_or_name)) is not None:
        return local_folder(path_or_name)
    return str(path_or_name)


def is_saved_adapter(folder: Path) -> bool:
    """Whether a folder holds LoRA or virtual adapters, to which a posterior may be added."""
    return (folder / ADAPTER_CONFIG).is_file() or (folder / VIRTUAL_RECORD).is_file()


def has_adapter_files(folder: Path, or_fail: bool) -> bool:
    """Whether a folder is a peft adapter's; raises InputError where it has to be and is not."""
    if (folder / ADAPTER_CONFIG).is_file():
        return True
    if or_fail and (folder / MODEL_CONFIG).is_file():
        raise InputError(
            f"{folder} holds a model without a LoRA adapter; give virtual_rank=8 (--virtual-rank 8) for a posterior "
            "over virtual adapters of the model as it is"
        )
    if or_fail:
        raise InputError(f"{folder} has no {ADAPTER_CONFIG}; it is not a peft adapter")
    return False


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
    model_options.setdefault("trust_remote_code", False)  # None would ask on the terminal
    has_tokenizer = tokenizer_folder is not None and (tokenizer_folder / TOKENIZER_CONFIG).is_file()
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            str(name), output_loading_info=True, **model_options
        )
        tokenizer = AutoTokenizer.from_pretrained(
            str(tokenizer_folder if has_tokenizer else name), trust_remote_code=model_options["trust_remote_code"]
        )
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"the model {name} brings code of its own: pass trust_remote_code=True to run it"
            ) from error
        raise InputError(f"the model {name} cannot be loaded: {str(error).splitlines()[0]}") from error
    absent = sorted(loading["missing_keys"])
    if absent:
        raise InputError(f"{name} is no reward model: it lacks {', '.join(absent[:4])}, which would be random")
    return model.eval(), tokenizer


def load_adapter(folder: Path, **model_options: Any) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Load a LoRA adapter on its base model, and its tokenizer.

    Args:
        folder: for which `has_adapter_files` holds.
        model_options: for `AutoModelForSequenceClassification.from_pretrained`.

    Raises:
        InputError: an unreadable adapter, or a score head that neither adapter nor base model holds.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / ADAPTER_CONFIG} cannot be read: {error}") from error
    head_shapes = _head_shapes(folder / ADAPTER_TENSORS)
    base = config.base_model_name_or_path
    try:
        labels = head_shapes[-1][0] if head_shapes else AutoConfig.from_pretrained(base).num_labels
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=labels, output_loading_info=True, **model_options
        )
    except (OSError, ValueError) as error:
        raise InputError(f"the adapter's base model {base} cannot be loaded: {str(error).splitlines()[0]}") from error
    absent = [name for name in loading["missing_keys"] if name.split(".")[0] in ("score", "classifier")]
    if absent and not head_shapes:
        raise InputError(f"neither {base} nor the adapter in {folder} holds the score head {absent[0]}")
    adapted = PeftModel.from_pretrained(model, str(folder))
    has_tokenizer = (folder / TOKENIZER_CONFIG).is_file()
    tokenizer = AutoTokenizer.from_pretrained(str(folder) if has_tokenizer else base)
    return adapted.eval(), tokenizer


def add_adapter(model: PeftModel, folder: Path, name: str) -> None:
    """Load another adapter of the same base model beside those that a model has, and make it active.

    Raises:
        InputError: no adapter, an unreadable one, one of another base model, or a name that is in use.
    """
    has_adapter_files(folder, or_fail=True)
    if name in model.peft_config:
        raise InputError(f"the model has an adapter {name!r} already")
    try:
        base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / ADAPTER_CONFIG} cannot be read: {error}") from error
    own = next(iter(model.peft_config.values())).base_model_name_or_path
    if base != own:
        raise InputError(f"the adapter in {folder} is of the base model {base}, not of {own}")
    _head_shapes(folder / ADAPTER_TENSORS)
    model.load_adapter(str(folder), adapter_name=name)
    model.set_adapter(name, inference_mode=True)


def _head_shapes(path: Path) -> list[list[int]]:
    """Shapes of the score head's weights in an adapter's file, in the file's order; empty where it has none."""
    try:
        with safe_open(path, framework="pt") as tensors:
            names = [
                name
                for name in sorted(tensors.keys())
                if name.endswith("weight") and "lora_" not in name and {"score", "classifier"} & set(name.split("."))
            ]
            shapes = [tensors.get_slice(name).get_shape() for name in names]
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing") from error
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file: {error}") from error
    return [shape for shape in shapes if len(shape) == 2]


def check_writable(folder: Path) -> None:
    """Raise InputError unless a folder can be made, or written to where it exists; leaves nothing behind."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} exists and is not a folder")
    parent = next(ancestor for ancestor in (folder, *folder.absolute().parents) if ancestor.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error


def save_folder(
    folder: Path,
    model: PeftModel | PreTrainedModel,
    adapter: str | None,
    tokenizer: PreTrainedTokenizerBase,
    virtual: VirtualAdapter | None = None,
    posterior: Posterior | None = None,
) -> None:
    """Write LoRA and virtual adapters, tokenizer and posterior into a folder; never the model under them.

    Everything is written beside it first and then moved in, the posterior's record last: a folder that was not there
    appears whole or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    check_writable(folder)
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}.") as beside:
            staging = Path(beside) / "staging"
            staging.mkdir()
            if adapter is not None:
                model.save_pretrained(str(staging), selected_adapters=[adapter], save_embedding_layers=False)
            if adapter not in (None, "default"):  # peft gives any other name a folder of its own
                for file in (staging / str(adapter)).iterdir():
                    shutil.move(file, staging / file.name)
                (staging / str(adapter)).rmdir()
            (staging / "README.md").unlink(missing_ok=True)
            tokenizer.save_pretrained(str(staging))
            if virtual is not None:
                save_virtual(virtual, str(model.config.name_or_path), staging)
            if posterior is not None:
                save_posterior(posterior, staging)
            if folder.exists():
                last = {TENSORS_FILE: 1, RECORD_FILE: 2}
                for file in sorted(staging.iterdir(), key=lambda f: last.get(f.name, 0)):
                    os.replace(file, folder / file.name)
            else:
                os.rename(staging, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from error
