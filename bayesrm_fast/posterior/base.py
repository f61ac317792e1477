"""What every structure of the posterior has: prior precision, evidence, variances and features."""

import contextlib
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.sites import Consumer, Site


@dataclass(frozen=True)
class ModelRecord:
    """The model that a posterior belongs to.

    Attributes:
        base_model: name or path of the model under the adapter.
        fingerprint: hashes of all that the model's rewards depend on, by part (`model.fingerprint`).
        include_head: whether the score head is part of the posterior.
        output_weights: weight of each output in the reward.
        max_length: tokens at which rows were cut.
        pad_token_id: of the model's configuration, by which the scored token is found; None where it had none.
        joining: how prompt and response were joined, "a function" for one of one's own; None for what the model's files
            say.
        appends_eos: whether rows ended in eos; None for what the files say.
        step_separator: what stood after each step; None for a model that scores whole responses.
    """

    base_model: str
    fingerprint: dict[str, str]
    include_head: bool
    output_weights: list[float]
    max_length: int
    pad_token_id: int | None = field(default=None, kw_only=True)
    joining: str | None = field(default=None, kw_only=True)
    appends_eos: bool | None = field(default=None, kw_only=True)
    step_separator: str | None = field(default=None, kw_only=True)

    @property
    def fingerprint_sha256(self) -> str:
        """One hash for all parts of the fingerprint."""
        return hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()

    def differing(self, fingerprint: Mapping[str, str]) -> list[str]:
        """The parts in which a model is another one than that of the fit."""
        names = dict.fromkeys([*self.fingerprint, *fingerprint])
        return [name for name in names if self.fingerprint.get(name) != fingerprint.get(name)]


@dataclass(frozen=True)
class FitRecord(ModelRecord):
    """What a posterior was fitted on and how; it never changes.

    Attributes:
        structure: "kfac", "ekfac" or "ggn".
        rank: eigenvectors kept, of each large side (kfac, ekfac) or of the whole GGN (ggn); None for all.
        pairs: number of preference pairs, or of labelled steps.
        log_likelihood: `Σ log σ(r_chosen − r_rejected)` of the fitted pairs, or that of the steps' labels; None where
            nobody said which is better.
        squared_norm: `‖θ‖²` of the weights that the posterior is over.
        versions: of the libraries that fitted it.
    """

    structure: str
    rank: int | None
    pairs: int
    log_likelihood: float | None
    squared_norm: float
    versions: dict[str, str]


def _as_number(value: Any) -> float:
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)
    raise InputError(f"the prior precision must be a positive number, not {value!r}")


LEAST_PRECISION = torch.finfo(torch.float32).tiny
"""λ and 1/λ are computed with in float32, which has neither below this."""


def check_prior_precision(precision: float) -> None:
    """Raise InputError unless λ is a positive number that float32 has, and its inverse too."""
    if not (math.isfinite(precision) and precision > 0):
        raise InputError(f"the prior precision must be a positive number, not {precision}")
    if not LEAST_PRECISION <= precision <= 1 / LEAST_PRECISION:
        raise InputError(
            f"the prior precision must be between {LEAST_PRECISION:.1e} and {1 / LEAST_PRECISION:.1e}, "
            f"which float32 can hold, not {precision}"
        )


@dataclass(frozen=True)
class PriorChoice:
    """A prior precision and how it was chosen.

    Attributes:
        precision: λ, positive.
        method: "given", "evidence", "validation", "margins" or "calibration".
        criterion: what the curve shows, or what the choice is.
        curve: `(λ, criterion)`; empty where λ follows without a search.

    Raises:
        InputError: a precision that is not a positive number, or beyond float32.
    """

    precision: float
    method: str = "given"
    criterion: str = ""
    curve: Sequence[tuple[float, float]] = field(default=())

    def __post_init__(self) -> None:
        check_prior_precision(self.precision)


@dataclass(frozen=True)
class PenaltyChoice:
    """A weight of the std of a difference to the prompt's other candidates, and how it was chosen.

    Attributes:
        k: the weight; 0 where no gain was beyond its standard error.
        judged: what it was chosen by: "responses" or "pairs".
        prompts: how many there were.
        gain: gold that choosing k added to the choice by the mean alone, over prompts and n, each measured on a fold of
            the prompts by what the others chose; NaN by pairs.
        standard_error: of the gain over prompts; NaN by pairs, and of a single prompt.
        curve: `(k, gold)`: mean gold of the choice; empty by pairs.
    """

    k: float
    judged: str
    prompts: int
    gain: float
    standard_error: float
    curve: Sequence[tuple[float, float]] = field(default=())


class VarianceConsumer(Consumer, Protocol):
    """A consumer of one batch that ends with variances."""

    @property
    def variance(self) -> Tensor:
        """Of every segment `[N]`, or `[L, N]` for L prior precisions, once the pass is over."""
        ...


class FeatureConsumer(Consumer, Protocol):
    """A consumer of one batch that ends with whitened gradients `Σ^½ J`: their inner products are the covariances."""

    def features(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Few numbers in the posterior's bases, and many outside of them, by name; each `[N, …]`."""
        ...


class Posterior(ABC):
    """Gaussian posterior `N(θ, (GGN + λI)⁻¹)` over the sites' weights.

    Args:
        sites: what it is over.
        record: what it was fitted on.
        prior: λ, and how it was chosen.
        temperature: T of the pairs' probabilities, 1 before `calibrate`.

    Raises:
        InputError: a prior precision or a temperature that is not a positive number.

    Attributes:
        sites, record, prior, temperature: as above; the last two may be set, at no cost.
        penalty: what `tune_penalty` has chosen; None before, and after another λ, to whose stds it does not apply.
    """

    def __init__(
        self, sites: Sequence[Site], record: FitRecord, prior: PriorChoice | float, temperature: float = 1.0
    ) -> None:
        self.sites = list(sites)
        self.record = record
        self._prior: PriorChoice | None = None
        self.penalty: PenaltyChoice | None = None
        self.prior = prior
        if not (math.isfinite(temperature) and temperature > 0):
            raise InputError(f"the temperature must be a positive number, not {temperature}")
        self.temperature = temperature

    @property
    def prior(self) -> PriorChoice:
        """λ, and how it was chosen; a number counts as given."""
        assert self._prior is not None
        return self._prior

    @prior.setter
    def prior(self, value: PriorChoice | float) -> None:
        chosen = value if isinstance(value, PriorChoice) else PriorChoice(_as_number(value))
        if self._prior is not None and self._prior.precision != chosen.precision:
            self.penalty = None  # it weighs stds under the λ that it was tuned at
        self._prior = chosen

    @property
    def prior_precision(self) -> float:
        """λ; setting it changes every variance and needs no new fit."""
        return self.prior.precision

    @prior_precision.setter
    def prior_precision(self, value: float) -> None:
        self.prior = value

    @property
    def parameters(self) -> int:
        """P, the number of weights that the posterior is over."""
        return sum(site.r * site.d for site in self.sites)

    @abstractmethod
    def spectrum(self) -> list[tuple[Tensor, int]]:
        """The GGN's eigenvalues but zeros, float64, in groups with a multiplicity each."""

    @abstractmethod
    def variance_consumer(self) -> VarianceConsumer:
        """A consumer of a batch of N segments that ends with their variances `JᵀΣJ` `[N]`."""

    @abstractmethod
    def variance_curve_consumer(self, precisions: Sequence[float]) -> VarianceConsumer:
        """The same at L other prior precisions, `[L, N]`."""

    @abstractmethod
    def feature_consumer(self) -> FeatureConsumer:
        """A consumer of a batch that ends with its whitened gradients."""

    @abstractmethod
    def conditional(self, sites: Sequence[Site]) -> Self:
        """The posterior of some sites' weights where all others are held at the MAP.

        Its variances `J₁ᵀ (GGN₁₁ + λI)⁻¹ J₁` are the least that `JᵀΣJ` can be, whatever the other sites' part of J is
        (docs/maths.md, section 6).
        """

    def to(self, device: torch.device | str) -> Self:
        """The same posterior with its tensors on `device`."""
        moved: dict[int, Tensor] = {}  # a tensor that sites share stays one
        tensors = {name: moved.setdefault(id(t), t.to(device)) for name, t in self.tensors().items()}
        posterior = self.from_tensors(self.sites, tensors, self.record, self.prior, self.temperature)
        posterior.penalty = self.penalty
        return posterior

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What a file holds, by `site/part`; sites may share a tensor."""

    @classmethod
    @abstractmethod
    def from_tensors(
        cls,
        sites: Sequence[Site],
        tensors: Mapping[str, Tensor],
        record: FitRecord,
        prior: PriorChoice,
        temperature: float,
    ) -> Self:
        """The inverse of `tensors`; raises KeyError where one is missing."""

    @abstractmethod
    def fault(self) -> str | None:
        """What of the tensors cannot be: a shape, an eigenvalue below zero, a basis that is not orthonormal."""

    def _sum_over_eigenvalues(self, function: Callable[[Tensor], Tensor]) -> float:
        return sum(times * float(function(values).sum()) for values, times in self.spectrum())

    def log_determinant(self, prior_precision: float | None = None) -> float:
        """`log det(GGN + λI)`."""
        precision = self.prior_precision if prior_precision is None else prior_precision
        return self.parameters * math.log(precision) + self._sum_over_eigenvalues(
            lambda values: (values / precision).log1p()
        )

    def effective_parameters(self, prior_precision: float | None = None) -> float:
        """`Σ E / (E + λ)`, how many directions the data determines (MacKay, 1992)."""
        precision = self.prior_precision if prior_precision is None else prior_precision
        return self._sum_over_eigenvalues(lambda values: values / (values + precision))

    def log_evidence(self, prior_precision: float | None = None) -> float:
        """`log p(D|θ) − ½λ‖θ‖² + ½P log λ − ½ log det(GGN + λI)`, the Laplace evidence in nats.

        Raises:
            InputError: a posterior that was fitted without labels.
        """
        if self.record.log_likelihood is None:
            raise InputError("a posterior of unlabelled candidates has no evidence: nobody said which are better")
        precision = self.prior_precision if prior_precision is None else prior_precision
        return (
            self.record.log_likelihood
            - 0.5 * precision * self.record.squared_norm
            + 0.5 * self.parameters * math.log(precision)
            - 0.5 * self.log_determinant(precision)
        )
