"""The two files that hold virtual adapters: their A, and a record that people can read."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bayesrm_fast.errors import InputError
from bayesrm_fast.posterior_files import read_json_record, read_tensor_bytes, write_whole
from bayesrm_fast.sites import VirtualTap
from bayesrm_fast.virtual import VirtualAdapter, VirtualOptions, linear_modules, model_hash

VIRTUAL_TENSORS = "virtual_adapter.safetensors"
VIRTUAL_RECORD = "virtual_adapter.json"
FORMAT = 1


def save_virtual(virtual: VirtualAdapter, model_name: str, folder: Path) -> None:
    """Write `virtual_adapter.safetensors` and `virtual_adapter.json` into an existing folder.

    Raises:
        InputError: a model that was never loaded from anywhere, which nobody could find again.
    """
    if not model_name:
        raise InputError("the model has no name or folder to be found by: save it first, and load it from there")
    tensors: dict[str, Tensor] = {}
    owners: dict[int, str] = {}
    for tap in virtual.taps:
        if owners.setdefault(id(tap.down), tap.name) == tap.name:
            tensors[tap.name] = tap.down.cpu().contiguous()
    content = safetensors.torch.save(tensors, metadata={"format": "pt"})
    targets = virtual.options.targets
    record = {
        "format": FORMAT,
        "model": model_name,
        "model_sha256": virtual.model_sha256,
        "virtual_rank": virtual.options.rank,
        "virtual_targets": targets if isinstance(targets, str) else list(targets),
        "layers": {tap.name: owners[id(tap.down)] for tap in virtual.taps},
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
    }
    write_whole(folder / VIRTUAL_TENSORS, content)
    write_whole(folder / VIRTUAL_RECORD, (json.dumps(record, indent=2) + "\n").encode())


def read_virtual_record(folder: Path) -> dict[str, Any] | None:
    """The readable half of saved virtual adapters; None where the folder has none.

    Raises:
        InputError: the file cannot be read, is no JSON object, or is of another format.
    """
    path = folder / VIRTUAL_RECORD
    if not path.exists():
        return None
    return read_json_record(path, FORMAT, "holds no virtual adapters")


def load_virtual(folder: Path, record: dict[str, Any], model: nn.Module) -> VirtualAdapter:
    """Put saved virtual adapters onto the model that they were made for.

    Raises:
        InputError: a file is missing, broken or of other adapters, or the model has other weights or layers.
    """
    path = folder / VIRTUAL_TENSORS
    content = read_tensor_bytes(path, record, VIRTUAL_RECORD)
    found = model_hash(model)
    if found != record["model_sha256"]:
        raise InputError(
            f"the virtual adapters in {folder} were made for other weights of {record['model']}, "
            "or for weights held in other numbers (quantised or float16)"
        )
    device = next(model.parameters()).device
    try:
        tensors = {name: a.to(device) for name, a in safetensors.torch.load(content).items()}
        taps = []
        layers = linear_modules(model)
        for name, owner in record["layers"].items():
            if name not in layers:
                raise InputError(f"{folder}: {record['model']} has no linear layer {name}")
            module, d_in, d_out = layers[name]
            if tensors[owner].shape != (record["virtual_rank"], d_in):
                raise InputError(f"{path}: A of {owner} is {list(tensors[owner].shape)}, not of {name}'s input")
            taps.append(VirtualTap(name, module, tensors[owner], d_out))
        return VirtualAdapter(VirtualOptions(record["virtual_rank"], record["virtual_targets"]), taps, found)
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} holds no readable virtual adapters: {error}") from error
