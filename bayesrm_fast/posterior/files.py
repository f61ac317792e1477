"""The two files that hold a posterior."""

import hashlib
from dataclasses import asdict, fields
from pathlib import Path

from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.posterior.base import FitRecord, Posterior, PriorChoice
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
        return CLASSES[fit.structure].from_tensors(sites, tensors, fit, prior, record["temperature"])
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no readable posterior: {error}") from error


def tensors_sha256(posterior: Posterior) -> str:
    """SHA-256 of a posterior's tensors, which a saved one's record has."""
    return hashlib.sha256(as_bytes(_stored_once(posterior)[0])).hexdigest()


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
