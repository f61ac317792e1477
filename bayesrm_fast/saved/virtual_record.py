"""The two files that hold virtual adapters: their A, and a record that people can read, which needs no model."""

from dataclasses import dataclass
from pathlib import Path

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.virtual_options import VirtualOptions
from bayesrm_fast.record_files import Record, RecordFiles


@dataclass(frozen=True)
class VirtualRecord(Record):
    """What `virtual_adapter.json` holds beside its format and checksum.

    Attributes:
        model: name or folder of the model that they were made for.
        virtual_rank, virtual_targets: as they were asked for.
        layers: for each layer with one the layer whose A it has: its own name, or another's on the same input.
    """

    model: str
    virtual_rank: int
    virtual_targets: str | list[str]
    layers: dict[str, str]

    def __post_init__(self) -> None:
        VirtualOptions(self.virtual_rank, self.virtual_targets)
        if not self.model or not self.layers:
            raise InputError("the model or the layers are empty")


FILES = RecordFiles(
    "virtual adapters", "virtual_adapter.json", "virtual_adapter.safetensors", format=2, schema=VirtualRecord
)


def read_virtual_record(folder: Path) -> VirtualRecord | None:
    """The readable half of saved virtual adapters; None where the folder has none.

    Raises:
        InputError: the file cannot be read, is of another format, holds other than the record, or was changed.
    """
    return FILES.read_record(folder) if FILES.are_in(folder) else None
