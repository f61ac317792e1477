"""The two files that hold a posterior."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.posterior.base import FitRecord, PenaltyChoice, Posterior, PriorChoice
from bayesrm_fast.posterior.ggn import GgnPosterior
from bayesrm_fast.posterior.kronecker import KroneckerPosterior
from bayesrm_fast.record_files import Record, RecordFiles, as_bytes
from bayesrm_fast.sites import Site
from bayesrm_fast.text.joining import A_FUNCTION, JoiningName

CLASSES: dict[str, type[Posterior]] = {
    "kfac": KroneckerPosterior,
    "ekfac": KroneckerPosterior,
    "ggn": GgnPosterior,
}


@dataclass(frozen=True)
class PriorRecord:
    """How a prior precision was chosen; see `PriorChoice`."""

    method: str
    criterion: str
    curve: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class PenaltyRecord:
    """See `PenaltyChoice`; NaN, which JSON does not have, is null."""

    k: float
    judged: Literal["responses", "pairs"]
    prompts: int
    gain: float | None
    standard_error: float | None
    curve: Sequence[tuple[float, float]]

    def __post_init__(self) -> None:
        if self.k < 0 or self.prompts < 1:
            raise InputError(f"a penalty of {self.k} by {self.prompts} prompts is none")


@dataclass(frozen=True, kw_only=True)
class PosteriorRecord(FitRecord, Record):
    """What `posterior.json` holds beside its format and checksum.

    Attributes:
        prior_precision, prior: λ, and how it was chosen.
        temperature: of the pairs' probabilities.
        penalty: what `tune_penalty` chose.
        log_evidence, effective_parameters, parameters: what follows from the rest, for a reader.
        sites: what the posterior is over.
        shared_tensors: names of tensors that are others, and those.

    Raises:
        InputError: a number that cannot be.
    """

    prior_precision: float
    prior: PriorRecord
    temperature: float
    penalty: PenaltyRecord | None
    log_evidence: float | None
    effective_parameters: float
    parameters: int
    sites: list[Site]
    shared_tensors: dict[str, str]

    def __post_init__(self) -> None:
        names = [site.name for site in self.sites]
        wrong = {
            "structure": self.structure not in CLASSES,
            "rank": self.rank is not None and self.rank < 1,
            "pairs": self.pairs < 0,
            "max_length": self.max_length < 1,
            "joining": self.joining not in (None, A_FUNCTION, *get_args(JoiningName)),
            "squared_norm": self.squared_norm < 0,
            "log_likelihood": self.log_likelihood is not None and self.log_likelihood > 0,
            "prior_precision": self.prior_precision <= 0,
            "temperature": self.temperature <= 0,
            "sites": len(set(names)) < len(names) or any(site.r < 1 or site.d < 1 for site in self.sites),
            "parameters": self.parameters != sum(site.r * site.d for site in self.sites),
        }
        first = next((name for name, is_wrong in wrong.items() if is_wrong), None)
        if first is not None:
            raise InputError(f"{first} cannot be {getattr(self, first)!r:.60}")


FILES = RecordFiles("a posterior", "posterior.json", "posterior.safetensors", format=5, schema=PosteriorRecord)


def save_posterior(posterior: Posterior, folder: Path) -> None:
    """Write `posterior.safetensors` and `posterior.json` into an existing folder, both or neither.

    Raises:
        InputError: the folder cannot be written.
    """
    tensors, shared = _stored_once(posterior)
    prior, penalty = posterior.prior, posterior.penalty
    record = PosteriorRecord(
        **vars(posterior.record),
        prior_precision=prior.precision,
        prior=PriorRecord(prior.method, prior.criterion, prior.curve),
        temperature=posterior.temperature,
        penalty=None if penalty is None else _written_penalty(penalty),
        log_evidence=None if posterior.record.log_likelihood is None else posterior.log_evidence(),
        effective_parameters=posterior.effective_parameters(),
        parameters=posterior.parameters,
        sites=posterior.sites,
        shared_tensors=shared,
    )
    FILES.write(folder, record, tensors)


def load_posterior(folder: Path) -> Posterior:
    """Read what `save_posterior` wrote.

    Raises:
        InputError: a file is missing, broken, changed, of another fit or of another format.
    """
    record = FILES.read_record(folder)
    tensors = FILES.read_tensors(folder, record)
    path = folder / FILES.tensors
    for name, tensor in tensors.items():
        site, _, part = name.rpartition("/")
        is_number = tensor.is_floating_point() or (part == "basis" and tensor.dtype == torch.int8)
        if not is_number or not tensor.isfinite().all():
            raise InputError(f"{path}: {part} of {site} is NaN or infinite, or no number")
    fit = FitRecord(**{field.name: getattr(record, field.name) for field in fields(FitRecord)})
    prior = PriorChoice(record.prior_precision, **vars(record.prior))
    try:
        tensors |= {name: tensors[owner] for name, owner in record.shared_tensors.items()}
        posterior = CLASSES[fit.structure].from_tensors(record.sites, tensors, fit, prior, record.temperature)
    except KeyError as error:
        raise InputError(f"{path} lacks {error.args[0]}") from error
    unknown = sorted(set(tensors) - set(posterior.tensors()))
    wrong = f"{unknown[0]} belongs to no site" if unknown else posterior.fault()
    if wrong is not None:
        raise InputError(f"{path}: {wrong}")
    posterior.penalty = None if record.penalty is None else _read_penalty(record.penalty)
    return posterior


def tensors_sha256(posterior: Posterior) -> str:
    """SHA-256 of a posterior's tensors, which a saved one's record has."""
    return hashlib.sha256(as_bytes(_stored_once(posterior)[0])).hexdigest()


def _written_penalty(penalty: PenaltyChoice) -> PenaltyRecord:
    finite = {name: held if math.isfinite(held) else None for name, held in _unknowns(penalty).items()}
    return PenaltyRecord(**(vars(penalty) | finite))


def _read_penalty(record: PenaltyRecord) -> PenaltyChoice:
    numbers = {name: math.nan if held is None else held for name, held in _unknowns(record).items()}
    return PenaltyChoice(**(vars(record) | numbers))


def _unknowns(penalty: PenaltyChoice | PenaltyRecord) -> dict[str, Any]:
    return {name: getattr(penalty, name) for name in ("gain", "standard_error")}


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
