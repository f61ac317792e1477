"""A LoRA adapter's two files, as peft's loader wants them."""

import copy
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from transformers import AutoConfig

from bayesrm_fast.model.forward import text_config
from bayesrm_fast.model.head import find_head
from bayesrm_fast.model.layers import adapter_config

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_TENSORS = "adapter_model.safetensors"

PREFIX = "base_model.model."
"""Of a `PeftModel`'s own names, which are those of the file."""


def save_adapter(folder: Path, model: Any, adapter: str) -> None:
    """Write an adapter into a folder, with the embeddings where tokens have been added to those of its base model."""
    config = adapter_config(model, adapter)
    resized = _is_resized(model, config)
    if not isinstance(model, PeftModel):
        _save_injected(folder, model, adapter, resized)
        return
    model.save_pretrained(str(folder), selected_adapters=[adapter], save_embedding_layers=resized)
    if adapter != "default":  # peft gives any other name a folder of its own
        for file in (folder / adapter).iterdir():
            shutil.move(file, folder / file.name)
        (folder / adapter).rmdir()
    (folder / "README.md").unlink(missing_ok=True)


def _save_injected(folder: Path, model: Any, adapter: str, resized: bool) -> None:
    """Of an adapter that was put into a model without a `PeftModel` around it; the score head is saved with it."""
    config: Any = copy.copy(adapter_config(model, adapter))
    config.base_model_name_or_path = config.base_model_name_or_path or model.config.name_or_path
    config.inference_mode = True
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=resized)
    head = find_head(model)
    if head is not None:
        name = head.name.split(".")[0]
        config.modules_to_save = sorted({name, *(config.modules_to_save or ())})
        if not any(key.startswith(f"{name}.") for key in state):
            state |= model.get_submodule(name).state_dict(prefix=f"{name}.")
    held = {PREFIX + key.removeprefix(PREFIX): weight.detach().cpu().contiguous() for key, weight in state.items()}
    safetensors.torch.save_file(held, folder / ADAPTER_TENSORS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _is_resized(model: Any, config: PeftConfig) -> bool:
    """Whether a model has another number of tokens than its base model's files say."""
    try:
        base = AutoConfig.from_pretrained(
            config.base_model_name_or_path or model.config.name_or_path, revision=config.revision, local_files_only=True
        )
    except (OSError, ValueError):  # no longer where it was loaded from, or of remote code
        return False
    sizes = [getattr(one, "vocab_size", None) for one in (base.get_text_config(), text_config(model))]
    return sizes[0] != sizes[1]
