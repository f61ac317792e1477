"""What the results of a run over a file of rows follow from."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesrm_fast.atomic import check_regular
from bayesrm_fast.errors import InputError
from bayesrm_fast.versions import library_versions

if TYPE_CHECKING:
    from bayesrm_fast.posterior.base import Posterior
    from bayesrm_fast.reward_model import BayesianRewardModel


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; raises InputError where they cannot be read."""
    try:
        check_regular(path)
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
    return {
        "input": input_sha256,
        "posterior": _posterior_sha256(loaded.fitted),
        **loaded.fitted.record.fingerprint,
        "max_length": loaded.encoder.max_length,
        "versions of libraries": library_versions(),
        **options,
    }


def _posterior_sha256(posterior: "Posterior") -> str:
    """Of what a fit has found, and how; the model that it was fitted on has its fingerprint."""
    from bayesrm_fast.posterior.files import tensors_sha256

    record = dataclasses.asdict(posterior.record)
    kept = {name: held for name, held in record.items() if name not in ("base_model", "fingerprint", "versions")}
    numbers = (tensors_sha256(posterior), posterior.prior_precision, posterior.temperature)
    return hashlib.sha256(json.dumps({"numbers": numbers, **kept}, sort_keys=True).encode()).hexdigest()
