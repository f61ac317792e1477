"""A readable record beside the tensors whose hash it names, so that neither is changed or taken for another's."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from bayesrm_fast.atomic import check_regular, replaced_whole
from bayesrm_fast.errors import InputError
from bayesrm_fast.schema import parsed, typed


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every record has.

    Attributes:
        tensors_sha256: of the safetensors file; `RecordFiles.write` fills it in.
    """

    tensors_sha256: str = ""


R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class RecordFiles(Generic[R]):
    """The two files of one kind of thing.

    The record is JSON: the fields of `schema`, the number of its layout, and a SHA-256 of all the rest of it.

    Attributes:
        what: such as "a posterior", for errors.
        record: name of the JSON file.
        tensors: name of the safetensors file.
        format: number of the record's layout.
        schema: the dataclass that the record is.
    """

    what: str
    record: str
    tensors: str
    format: int
    schema: type[R]

    @property
    def names(self) -> tuple[str, str]:
        """Of both files."""
        return self.record, self.tensors

    def are_in(self, folder: Path) -> bool:
        """Whether a folder has such a record."""
        return (folder / self.record).exists()

    def write(self, folder: Path, record: R, tensors: Mapping[str, Tensor]) -> None:
        """Write both into an existing folder, or neither.

        Raises:
            InputError: the folder cannot be written.
        """
        content = as_bytes(tensors)
        named = dataclasses.replace(record, tensors_sha256=hashlib.sha256(content).hexdigest())
        whole = {"format": self.format, **dataclasses.asdict(named)}
        with replaced_whole(folder) as new:
            (new / self.tensors).write_bytes(content)
            text = json.dumps(whole | {"sha256": _checksum(whole)}, indent=2, allow_nan=False) + "\n"
            (new / self.record).write_text(text, encoding="utf-8")

    def read_record(self, folder: Path) -> R:
        """The readable half.

        Raises:
            InputError: the file cannot be read, is of another format, holds other than the schema's fields, or was
                changed after it was written.
        """
        path = folder / self.record
        try:
            whole = parsed(content_of(path).decode(), str(path))
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(whole, dict) or type(whole.get("format")) is not int or whole["format"] != self.format:
            raise InputError(f"{path} does not hold {self.what} of format {self.format}")
        checksum = whole.pop("sha256", None)
        record: R = typed(self.schema, {name: held for name, held in whole.items() if name != "format"}, str(path))
        if checksum != _checksum(whole):
            raise InputError(f"{path} was changed after it was written: its sha256 is not that of what it holds")
        return record

    def read_tensors(self, folder: Path, record: R) -> dict[str, Tensor]:
        """The other half, which has to be the one that the record names.

        Raises:
            InputError: the file cannot be read, is broken, or belongs to another record.
        """
        path = folder / self.tensors
        content = content_of(path)
        if hashlib.sha256(content).hexdigest() != record.tensors_sha256:
            raise InputError(f"{path} is truncated or belongs to another {self.record}")
        try:
            return safetensors.torch.load(content)
        except SafetensorError as error:
            raise InputError(f"{path} is not a safetensors file: {error}") from error


def content_of(path: Path) -> bytes:
    """What a file holds; raises InputError where it cannot be read, or is a pipe or a folder."""
    try:
        check_regular(path)
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def as_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """What a safetensors file of them holds."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(held, metadata={"format": "pt"})


def _checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record, however its text is laid out."""
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
