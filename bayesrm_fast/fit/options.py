"""What a fit can be asked for."""

from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal, Self, cast

import torch

from bayesrm_fast.errors import InputError
from bayesrm_fast.fit.sketches import keeps_every_pair
from bayesrm_fast.posterior.base import Posterior, check_prior_precision
from bayesrm_fast.posterior.ggn import GgnPosterior

DEFAULT_RANK = {"kfac": 64, "ekfac": 64, "ggn": 128}
BASIS_DTYPES = (None, torch.float32, torch.bfloat16, torch.int8)
CHOICES = ("evidence", "validation", "margins")

Precision = float | Literal["evidence", "validation", "margins"]
"""λ, or how it is chosen: "evidence" maximises the Laplace evidence; "validation" takes the λ with the smallest NLL on
held-out pairs; "margins" the λ at which the prior alone expects reward differences as large as the model's own."""


@dataclass(frozen=True)
class FitOptions:
    """What a fit is asked for; checked when it is made.

    Attributes:
        structure: "ggn" (the leading eigenvectors of the whole curvature, one pass over the pairs), "kfac" (a block for
            each weight matrix, one pass) or "ekfac" (two passes, with measured eigenvalues).
        rank: for kfac and ekfac: eigenvectors kept of each large side, 64 by default; the rest gets its exact mean
            eigenvalue. For ggn: eigenvectors kept of all sites together, 128 by default; exact where there are no
            more pairs, with the prior outside of them otherwise. None keeps all.
        prior_precision: λ, "evidence", "validation" or "margins" (see `Precision`). Default: "evidence" for LoRA,
            "margins" where there are virtual adapters, whose weights are zero and leave the evidence without a maximum,
            and for candidates without labels.
        include_head: put the score head's weight into the posterior too.
        second_pass: for ggn: sharpen the eigenvectors by a second pass over the pairs.
        basis_dtype: for ggn: what its eigenvectors are kept in, float32, bfloat16 or int8, which take a half and a
            quarter of it; None for the model's.

    Raises:
        InputError: an unknown structure, a rank below 1, a λ that is not positive, or what is for ggn alone.
    """

    structure: str = "ggn"
    rank: int | Literal["default"] | None = "default"
    prior_precision: Precision | None = None
    include_head: bool = False
    second_pass: bool = False
    basis_dtype: torch.dtype | None = None

    @property
    def kept(self) -> int | None:
        """The rank as a number, or None for all."""
        return DEFAULT_RANK[self.structure] if isinstance(self.rank, str) else self.rank

    def passes(self, pairs: int) -> int:
        """How often a fit goes over so many pairs; a ggn that is exact after the first pass needs no second one."""
        is_sharpened = self.second_pass and not keeps_every_pair(self.kept, pairs)
        return 2 if self.structure == "ekfac" or is_sharpened else 1

    @property
    def chosen(self) -> Precision:
        """The prior precision, once its default is known."""
        assert self.prior_precision is not None
        return self.prior_precision

    def with_default(self, prior_precision: Precision) -> Self:
        """The same with this prior precision where none is given."""
        return self if self.prior_precision is not None else replace(self, prior_precision=prior_precision)

    def __post_init__(self) -> None:
        if self.structure not in DEFAULT_RANK:
            raise InputError(f"structure must be one of {', '.join(DEFAULT_RANK)}, not {self.structure!r}")
        if self.rank not in (None, "default") and (type(self.rank) is not int or self.rank < 1):
            raise InputError(f"rank must be a whole number of at least 1, or None for full rank, not {self.rank!r}")
        if self.prior_precision is not None:
            check_precision(self.prior_precision)
        if self.structure != "ggn" and (self.second_pass or self.basis_dtype is not None):
            raise InputError("second_pass and basis_dtype are for structure='ggn' alone")
        if self.basis_dtype not in BASIS_DTYPES:
            raise InputError(
                f"basis_dtype must be torch.float32, torch.bfloat16 or torch.int8, not {self.basis_dtype!r}"
            )


def options_of(posterior: Posterior) -> FitOptions:
    """What a posterior was fitted by, as far as it says; λ as a number where nothing in a fit chooses it."""
    record, prior = posterior.record, posterior.prior
    stored = next(iter(posterior.bases.values())).values.dtype if isinstance(posterior, GgnPosterior) else None
    return FitOptions(
        record.structure,
        record.rank,
        cast(Precision, prior.method) if prior.method in CHOICES else prior.precision,
        record.include_head,
        basis_dtype=stored if stored in BASIS_DTYPES else None,  # float64 is the model's
    )


def check_precision(precision: Precision) -> None:
    """Raise InputError unless this is a positive number or the name of a choice."""
    if isinstance(precision, str):
        if precision not in CHOICES:
            raise InputError(
                f"prior_precision must be a number, 'evidence', 'validation' or 'margins', not {precision!r}"
            )
    elif not isinstance(precision, Real):
        raise InputError(f"the prior precision must be a positive number, not {precision}")
    else:
        check_prior_precision(float(precision))
