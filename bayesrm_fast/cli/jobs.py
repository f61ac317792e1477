"""What the results of a run over a file of rows follow from."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesrm_fast.errors import InputError
from bayesrm_fast.versions import library_versions

if TYPE_CHECKING:
    from bayesrm_fast.reward_model import BayesianRewardModel


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; raises InputError where they cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def check_unchanged(path: Path, sha256: str) -> None:
    """Raise InputError where an input is no longer the file that it was when the run began."""
    if file_sha256(path) != sha256:
        raise InputError(f"{path} has changed while it was read: nothing is written, run again")


def job_of(loaded: "BayesianRewardModel", input_sha256: str, options: dict[str, Any]) -> dict[str, Any]:
    """What the results of a run follow from, by the names that a refusal calls its parts by."""
    return {"input": input_sha256, **reward_parts(loaded), "version of a library": library_versions(), **options}


def reward_parts(loaded: "BayesianRewardModel") -> dict[str, Any]:
    """Digests of all that a reward and its variance follow from."""
    from bayesrm_fast.model.hashes import model_hash
    from bayesrm_fast.posterior.files import tensors_sha256

    posterior = loaded.fitted
    model: Any = loaded.model
    adapter = None if loaded.adapter is None else model.peft_config[loaded.adapter].to_dict()
    elsewhere = ("base_model_name_or_path", "revision", "inference_mode", "modules_to_save")  # the last grows by saving
    record = dataclasses.asdict(posterior.record)
    numbers = (tensors_sha256(posterior), posterior.prior_precision, posterior.temperature)
    return {
        "adapter": posterior.record.adapter_sha256,
        "adapter's configuration": _sha256(adapter, without=elsewhere),
        "posterior": _sha256({"numbers": numbers, **record}, without=("base_model", "versions")),
        "tokenizer": _tokenizer_sha256(loaded.tokenizer),
        "base model": model_hash(model),
        "base model's configuration": _sha256(model.config.to_dict(), without=("_name_or_path",)),
        "max_length": loaded.encoder.max_length,
    }


def _sha256(values: dict[str, Any] | None, without: tuple[str, ...]) -> str:
    """Of values as JSON; what is in `without` says where a thing was found, not what it is."""
    kept = {name: value for name, value in (values or {}).items() if name not in without}

    def as_json(value: Any) -> Any:
        return sorted(value, key=str) if isinstance(value, set) else str(value)

    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=as_json).encode()).hexdigest()


def _tokenizer_sha256(tokenizer: Any) -> str:
    """Of the files that a tokenizer is saved as, its chat template among them."""
    import tempfile

    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        for path in sorted(Path(scratch).rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(scratch)} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
