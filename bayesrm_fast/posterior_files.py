"""The two files that hold a posterior: tensors, and a record that people can read."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from bayesrm_fast.errors import InputError
from bayesrm_fast.kronecker import KroneckerPosterior
from bayesrm_fast.low_rank import LowRankPosterior
from bayesrm_fast.posterior import FitRecord, Posterior
from bayesrm_fast.sites import Site

TENSORS_FILE = "posterior.safetensors"
RECORD_FILE = "posterior.json"
FORMAT = 2

CLASSES: dict[str, type[Posterior]] = {
    "kfac": KroneckerPosterior,
    "ekfac": KroneckerPosterior,
    "ggn": LowRankPosterior,
}


def save_posterior(posterior: Posterior, folder: Path) -> None:
    """Write `posterior.safetensors` and `posterior.json` into an existing folder.

    Each file is complete or absent. The record is written last and names the tensors' hash, so that files of two fits
    are never taken for one.
    """
    tensors, shared = {}, {}
    owners: dict[int, str] = {}
    for name, tensor in posterior.tensors().items():
        owner = owners.setdefault(id(tensor), name)
        if owner == name:
            tensors[name] = tensor.detach().cpu().contiguous()
        else:
            shared[name] = owner
    content = safetensors.torch.save(tensors, metadata={"format": "pt"})
    record = {
        "format": FORMAT,
        "prior_precision": posterior.prior_precision,
        "log_evidence": None if posterior.record.log_likelihood is None else posterior.log_evidence(),
        "effective_parameters": posterior.effective_parameters(),
        "parameters": posterior.parameters,
        **asdict(posterior.record),
        "sites": [asdict(site) for site in posterior.sites],
        "shared_tensors": shared,
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
    }
    write_whole(folder / TENSORS_FILE, content)
    write_whole(folder / RECORD_FILE, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def load_posterior(folder: Path) -> Posterior:
    """Read what `save_posterior` wrote.

    Raises:
        InputError: a file is missing, broken, of another fit or of another format.
    """
    record = read_record(folder)
    content = read_tensor_bytes(folder / TENSORS_FILE, record, RECORD_FILE)
    try:
        tensors = safetensors.torch.load(content)
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                site, _, part = name.rpartition("/")
                raise InputError(f"{folder / TENSORS_FILE}: {part} of {site} is NaN or infinite")
        sites = [Site(**site) for site in record["sites"]]
        fit = FitRecord(**{name: record[name] for name in FitRecord.__dataclass_fields__})
        tensors |= {name: tensors[owner] for name, owner in record["shared_tensors"].items()}
        return CLASSES[fit.structure].from_tensors(sites, tensors, record["prior_precision"], fit)
    except (SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no readable posterior: {error}") from error


def read_record(folder: Path) -> dict[str, Any]:
    """The readable half of a saved posterior.

    Raises:
        InputError: the file is missing, is no JSON object, or is of another format.
    """
    return read_json_record(folder / RECORD_FILE, FORMAT, "is not a posterior")


def read_json_record(path: Path, file_format: int, otherwise: str) -> dict[str, Any]:
    """The JSON half of a pair of files; `otherwise` says what a file of another format is told to be.

    Raises:
        InputError: the file cannot be read, is no JSON object, or is of another format.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(record, dict) or record.get("format") != file_format or "tensors_sha256" not in record:
        raise InputError(f"{path} {otherwise} of format {file_format}")
    return record


def read_tensor_bytes(path: Path, record: dict[str, Any], record_file: str) -> bytes:
    """The other half, which has to be the one that the record names.

    Raises:
        InputError: the file cannot be read, is broken, or belongs to another record.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != record["tensors_sha256"]:
        raise InputError(f"{path} is truncated or belongs to another {record_file}")
    return content


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes the file `path`, so that it is never seen half-written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half-written."""
    with written_whole(path) as beside:
        beside.write_bytes(content)
