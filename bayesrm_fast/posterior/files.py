"""The two files that hold a posterior."""

import hashlib
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.posterior.base import FitRecord, PenaltyChoice, Posterior, PriorChoice
from bayesrm_fast.posterior.ggn import GgnPosterior
from bayesrm_fast.posterior.kronecker import KroneckerPosterior
from bayesrm_fast.record_files import RecordFiles, as_bytes
from bayesrm_fast.sites import Site

FILES = RecordFiles("a posterior", "posterior.json", "posterior.safetensors", format=2)

CLASSES: dict[str, type[Posterior]] = {
    "kfac": KroneckerPosterior,
    "ekfac": KroneckerPosterior,
    "ggn": GgnPosterior,
}


def save_posterior(posterior: Posterior, folder: Path) -> None:
    """Write `posterior.safetensors` and `posterior.json` into an existing folder, both or neither.

    Raises:
        InputError: the folder cannot be written.
    """
    tensors, shared = _stored_once(posterior)
    record = {
        "prior_precision": posterior.prior_precision,
        "log_evidence": None if posterior.record.log_likelihood is None else posterior.log_evidence(),
        "effective_parameters": posterior.effective_parameters(),
        "parameters": posterior.parameters,
        **asdict(posterior.record),
        "temperature": posterior.temperature,
        "penalty": None if posterior.penalty is None else _written_penalty(posterior.penalty),
        "prior": {name: value for name, value in asdict(posterior.prior).items() if name != "precision"},
        "sites": [asdict(site) for site in posterior.sites],
        "shared_tensors": shared,
    }
    FILES.write(folder, record, tensors)


def load_posterior(folder: Path) -> Posterior:
    """Read what `save_posterior` wrote.

    Raises:
        InputError: a file is missing, broken, of another fit or of another format.
    """
    record = FILES.read_record(folder)
    tensors = FILES.read_tensors(folder, record)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            site, _, part = name.rpartition("/")
            raise InputError(f"{folder / FILES.tensors}: {part} of {site} is NaN or infinite")
    try:
        sites = [Site(**site) for site in record["sites"]]
        fit = FitRecord(**{field.name: record[field.name] for field in fields(FitRecord)})
        # A calibration of an earlier version has its number of pairs there, and no curve.
        chosen = {name: value for name, value in record["prior"].items() if name != "pairs"}
        curve = [tuple(point) for point in chosen.get("curve", [])]  # JSON has no tuples
        prior = PriorChoice(record["prior_precision"], **(chosen | {"curve": curve}))
        tensors |= {name: tensors[owner] for name, owner in record["shared_tensors"].items()}
        posterior = CLASSES[fit.structure].from_tensors(sites, tensors, fit, prior, record["temperature"])
        posterior.penalty = None if record.get("penalty") is None else _read_penalty(record["penalty"])
        return posterior
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no readable posterior: {error}") from error


def tensors_sha256(posterior: Posterior) -> str:
    """SHA-256 of a posterior's tensors, which a saved one's record has."""
    return hashlib.sha256(as_bytes(_stored_once(posterior)[0])).hexdigest()


def _written_penalty(penalty: PenaltyChoice) -> dict[str, Any]:
    """JSON has no NaN."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in asdict(penalty).items()}


def _read_penalty(record: dict[str, Any]) -> PenaltyChoice:
    numbers = {name: math.nan if record[name] is None else record[name] for name in ("gain", "standard_error")}
    curve = [tuple(point) for point in record["curve"]]
    return PenaltyChoice(**(record | numbers | {"curve": curve}))


def _stored_once(posterior: Posterior) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the names of those that are another one's."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    owners: dict[int, str] = {}
    for name, tensor in posterior.tensors().items():
        owner = owners.setdefault(id(tensor), name)
        if owner == name:
            tensors[name] = tensor
        else:
            shared[name] = owner
    return tensors, shared
