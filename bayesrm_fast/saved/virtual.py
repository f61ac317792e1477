"""Virtual adapters in their two files: written, and put onto the model that they were made for."""

from pathlib import Path

from torch import Tensor, nn

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.layers import linear_modules
from bayesrm_fast.model.offloaded import input_device
from bayesrm_fast.model.virtual import VirtualAdapter, VirtualTap
from bayesrm_fast.model.virtual_options import VirtualOptions
from bayesrm_fast.saved.virtual_record import FILES, VirtualRecord


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
    record = VirtualRecord(
        model=model_name,
        virtual_rank=virtual.options.rank,
        virtual_targets=targets if isinstance(targets, str) else list(targets),
        layers={tap.name: owners[id(tap.down)] for tap in virtual.taps},
    )
    FILES.write(folder, record, tensors)


def load_virtual(folder: Path, record: VirtualRecord, model: nn.Module) -> VirtualAdapter:
    """Put saved virtual adapters onto the model that they were made for.

    Raises:
        InputError: a file is missing, broken or of other adapters, or the model has other layers.
    """
    path = folder / FILES.tensors
    device = input_device(model)
    tensors = {name: a.to(device) for name, a in FILES.read_tensors(folder, record).items()}
    if tensors.keys() != set(record.layers.values()):
        raise InputError(f"{path} does not hold the A of each of the record's layers, and no others")
    taps = []
    layers = linear_modules(model)
    for name, owner in record.layers.items():
        if name not in layers:
            raise InputError(f"{folder / FILES.record}: {record.model} has no linear layer {name}")
        module, d_in, d_out = layers[name]
        down = tensors[owner]
        if down.shape != (record.virtual_rank, d_in):
            raise InputError(f"{path}: A of {owner} is {list(down.shape)}, not of {name}'s input")
        if not down.is_floating_point() or not down.isfinite().all():
            raise InputError(f"{path}: A of {owner} is NaN or infinite, or no number")
        taps.append(VirtualTap(name, module, down, d_out))
    return VirtualAdapter(VirtualOptions(record.virtual_rank, record.virtual_targets), taps)
