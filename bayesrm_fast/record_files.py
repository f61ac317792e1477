"""A readable record beside the tensors whose hash it names, so that files of two runs are never taken for one."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from bayesrm_fast.atomic import replaced_whole
from bayesrm_fast.errors import InputError


@dataclass(frozen=True)
class RecordFiles:
    """The two files of one kind of thing.

    Attributes:
        what: such as "a posterior", for errors.
        record: name of the JSON file.
        tensors: name of the safetensors file.
        format: number of the record's layout.
    """

    what: str
    record: str
    tensors: str
    format: int

    @property
    def names(self) -> tuple[str, str]:
        """Of both files."""
        return self.record, self.tensors

    def are_in(self, folder: Path) -> bool:
        """Whether a folder has such a record."""
        return (folder / self.record).exists()

    def write(self, folder: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write both into an existing folder, or neither.

        Raises:
            InputError: the folder cannot be written.
        """
        content = as_bytes(tensors)
        whole = {"format": self.format, **record, "tensors_sha256": hashlib.sha256(content).hexdigest()}
        with replaced_whole(folder) as new:
            (new / self.tensors).write_bytes(content)
            text = json.dumps(whole, indent=2, allow_nan=False) + "\n"
            (new / self.record).write_text(text, encoding="utf-8")

    def read_record(self, folder: Path) -> dict[str, Any]:
        """The readable half.

        Raises:
            InputError: the file cannot be read, is no JSON object, or is of another format.
        """
        path = folder / self.record
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:  # nested more deeply than it can be read
            raise InputError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(record, dict) or record.get("format") != self.format or "tensors_sha256" not in record:
            raise InputError(f"{path} does not hold {self.what} of format {self.format}")
        return record

    def read_tensors(self, folder: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
        """The other half, which has to be the one that the record names.

        Raises:
            InputError: the file cannot be read, is broken, or belongs to another record.
        """
        path = folder / self.tensors
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != record["tensors_sha256"]:
            raise InputError(f"{path} is truncated or belongs to another {self.record}")
        try:
            return safetensors.torch.load(content)
        except SafetensorError as error:
            raise InputError(f"{path} is not a safetensors file: {error}") from error


def as_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """What a safetensors file of them holds."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(held, metadata={"format": "pt"})
