"""What a folder or a name on the hub holds, and writing one whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from bayesrm_fast.atomic import check_folder, replaced_whole, settle
from bayesrm_fast.errors import InputError
from bayesrm_fast.model.layers import adapter_config
from bayesrm_fast.model.virtual import VirtualAdapter
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.posterior.files import FILES as POSTERIOR_FILES
from bayesrm_fast.posterior.files import save_posterior
from bayesrm_fast.saved.adapters import ADAPTER_CONFIG, save_adapter
from bayesrm_fast.saved.virtual import save_virtual
from bayesrm_fast.saved.virtual_record import FILES as VIRTUAL_FILES

MODEL_CARD = "README.md"
MODEL_CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

OWNED = (*POSTERIOR_FILES.names, *VIRTUAL_FILES.names, "chat_template.jinja", "additional_chat_templates")
"""What a save replaces even where it writes no new one; what else it writes replaces the file of its name alone."""

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
"""Options of `from_pretrained` that say where files come from, and so are the configuration's and tokenizer's too."""


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a caller's options that are in `HUB_OPTIONS`."""
    return {name: options[name] for name in HUB_OPTIONS if name in options}


def local_folder(path_or_name: str | os.PathLike[str], **options: Any) -> Path:
    """The folder itself, with a save that was killed in it undone or finished; or a hub repository's adapter files.

    Args:
        path_or_name: a folder, or a name on the hub.
        options: of `HUB_OPTIONS`, for a name on the hub.

    Raises:
        InputError: neither a folder nor a repository that can be had, or a folder that cannot be settled.
    """
    folder = Path(path_or_name)
    if folder.is_dir():
        settle(folder)
        return folder
    if folder.exists() or folder.is_absolute() or len(folder.parts) != 2:
        raise InputError(f"{folder} is not a folder")
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", MODEL_CARD]
    try:
        return Path(snapshot_download(str(path_or_name), allow_patterns=patterns, **options))
    except Exception as error:  # the hub's errors are many, and what they mean here is one thing
        raise InputError(f"{folder} is not a folder, and no such repository could be downloaded") from error


def local_folder_or_name(path_or_name: str | os.PathLike[str], takes_models: bool, **options: Any) -> Path | str:
    """A folder as `local_folder` has it; where models without an adapter will do, a hub model's name stays a name.

    Raises:
        InputError: neither a folder nor a repository that can be had.
    """
    is_folder = Path(path_or_name).is_dir() or not takes_models
    try:
        if is_folder or find_adapter_config_file(str(path_or_name), **options) is not None:
            return local_folder(path_or_name, **options)
    except OSError as error:  # neither a path that is there nor a name that could be one
        raise InputError(f"{path_or_name} is not a folder, and cannot be had from the hub") from error
    return str(path_or_name)


def is_saved_adapter(folder: Path) -> bool:
    """Whether a folder holds LoRA or virtual adapters, to which a posterior may be added."""
    return (folder / ADAPTER_CONFIG).is_file() or VIRTUAL_FILES.are_in(folder)


def has_adapter_files(folder: Path, or_fail: bool) -> bool:
    """Whether a folder is a peft adapter's; raises InputError where it has to be and is not."""
    if (folder / ADAPTER_CONFIG).is_file():
        return True
    if or_fail and POSTERIOR_FILES.are_in(folder):
        raise InputError(f"{folder} has a posterior, and neither {ADAPTER_CONFIG} nor {VIRTUAL_FILES.record} beside it")
    if or_fail and (folder / MODEL_CONFIG).is_file():
        raise InputError(
            f"{folder} holds a model without a LoRA adapter; give virtual_rank=8 (--virtual-rank 8) for a posterior "
            "over virtual adapters of the model as it is"
        )
    if or_fail:
        raise InputError(f"{folder} has no {ADAPTER_CONFIG}; it is not a peft adapter")
    return False


def check_target(folder: Path, base_model: str | None) -> None:
    """Raise InputError where `save_folder` would refuse a folder; leaves nothing behind.

    Args:
        folder: where to save.
        base_model: name or folder of the model under the LoRA adapter; None where there is no adapter.
    """
    check_folder(folder)
    if base_model is None and (folder / ADAPTER_CONFIG).is_file():
        raise InputError(f"{folder} holds a LoRA adapter, and this model has none: save it to another folder")
    if base_model is not None and folder.exists() and Path(base_model).exists() and folder.samefile(base_model):
        raise InputError(f"{folder} is the base model's folder: save the adapter to another one")


def save_folder(
    folder: Path,
    model: Any,
    adapter: str | None,
    tokenizer: PreTrainedTokenizerBase,
    virtual: VirtualAdapter | None = None,
    posterior: Posterior | None = None,
) -> None:
    """Write LoRA and virtual adapters, tokenizer and posterior into a folder; never the model under them.

    A folder that was not there appears whole or not at all. In one that was, what is written takes the place of what
    an earlier save wrote, all of it or none; other files stay.

    Raises:
        InputError: the folder cannot be written, is the base model's of a LoRA adapter, or holds a LoRA adapter while
            there is none to take its place.
    """
    base_model = None if adapter is None else str(adapter_config(model, adapter).base_model_name_or_path)
    check_target(folder, base_model)
    with replaced_whole(folder, OWNED) as new:
        if adapter is not None:
            try:
                save_adapter(new, model, adapter)
            except SafetensorError as error:
                raise InputError(f"{folder} cannot be written: {error}") from error
        tokenizer.save_pretrained(str(new))
        if virtual is not None:
            save_virtual(virtual, str(model.config.name_or_path), new)
        if posterior is not None:
            save_posterior(posterior, new)
