"""The two files that hold virtual adapters: their A, and a record that people can read."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.hashes import model_hash
from bayesrm_fast.model.layers import linear_modules
from bayesrm_fast.model.virtual import VirtualAdapter, VirtualOptions, VirtualTap
from bayesrm_fast.record_files import RecordFiles

FILES = RecordFiles("virtual adapters", "virtual_adapter.json", "virtual_adapter.safetensors", format=1)


def save_virtual(virtual: VirtualAdapter, model_name: str, folder: Path) -> None:
    """Write `virtual_adapter.safetensors` and `virtual_adapter.json` into an existing folder, both or neither.

    Raises:
        InputError: the folder cannot be written, or a model that was never loaded from anywhere, which nobody could
            find again.
    """
    if not model_name:
        raise InputError("the model has no name or folder to be found by: save it first, and load it from there")
    tensors: dict[str, Tensor] = {}
    owners: dict[int, str] = {}
    for tap in virtual.taps:
        if owners.setdefault(id(tap.down), tap.name) == tap.name:
            tensors[tap.name] = tap.down
    targets = virtual.options.targets
    record = {
        "model": model_name,
        "model_sha256": virtual.model_sha256,
        "virtual_rank": virtual.options.rank,
        "virtual_targets": targets if isinstance(targets, str) else list(targets),
        "layers": {tap.name: owners[id(tap.down)] for tap in virtual.taps},
    }
    FILES.write(folder, record, tensors)


def read_virtual_record(folder: Path) -> dict[str, Any] | None:
    """The readable half of saved virtual adapters; None where the folder has none.

    Raises:
        InputError: the file cannot be read, is no JSON object, is of another format, or lacks a part.
    """
    if not FILES.are_in(folder):
        return None
    record = FILES.read_record(folder)
    rank, targets, layers = (record.get(name) for name in ("virtual_rank", "virtual_targets", "layers"))
    expected = {
        "model": _is_name(record.get("model")),
        "model_sha256": _is_name(record.get("model_sha256")),
        "virtual_rank": type(rank) is int and rank > 0,
        "virtual_targets": _is_name(targets) or (isinstance(targets, list) and all(map(_is_name, targets))),
        "layers": isinstance(layers, dict) and bool(layers) and all(map(_is_name, layers.values())),
    }
    for name, is_right in expected.items():
        if not is_right:
            raise InputError(f"{folder / FILES.record}: {name} is missing or not what was saved")
    return record


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def load_virtual(folder: Path, record: dict[str, Any], model: nn.Module) -> VirtualAdapter:
    """Put saved virtual adapters onto the model that they were made for.

    Raises:
        InputError: a file is missing, broken or of other adapters, or the model has other weights or layers.
    """
    saved = FILES.read_tensors(folder, record)
    found = model_hash(model)
    if found != record["model_sha256"]:
        raise InputError(
            f"the virtual adapters in {folder} were made for other weights of {record['model']}, "
            "or for weights held in other numbers (quantised or float16)"
        )
    device = next(model.parameters()).device
    tensors = {name: a.to(device) for name, a in saved.items()}
    taps = []
    layers = linear_modules(model)
    for name, owner in record["layers"].items():
        if name not in layers:
            raise InputError(f"{folder / FILES.record}: {record['model']} has no linear layer {name}")
        if owner not in tensors:
            raise InputError(f"{folder / FILES.record}: {FILES.tensors} has no A of {owner}")
        module, d_in, d_out = layers[name]
        if tensors[owner].shape != (record["virtual_rank"], d_in):
            shape = list(tensors[owner].shape)
            raise InputError(f"{folder / FILES.tensors}: A of {owner} is {shape}, not of {name}'s input")
        taps.append(VirtualTap(name, module, tensors[owner], d_out))
    return VirtualAdapter(VirtualOptions(record["virtual_rank"], record["virtual_targets"]), taps, found)
