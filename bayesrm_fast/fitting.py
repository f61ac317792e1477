"""From preference pairs to a posterior."""

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from bayesrm_fast.curvature import EigenvalueCorrection, GgnSketch, KroneckerMoments, keeps_every_pair
from bayesrm_fast.errors import InputError
from bayesrm_fast.fit_memory import ggn_memory
from bayesrm_fast.kronecker import KroneckerPosterior, ekfac_blocks, kfac_blocks
from bayesrm_fast.low_rank import LowRankPosterior
from bayesrm_fast.ops import segment_outer
from bayesrm_fast.passes import Passes, Progress, Segment, drawn, likelihood_cotangent, pair_cotangent
from bayesrm_fast.posterior import FitRecord, Posterior
from bayesrm_fast.prior import GRID, by_evidence, by_margins, by_validation
from bayesrm_fast.sites import LoraTap, Site
from bayesrm_fast.taps import Consumer

logger = logging.getLogger("bayesrm_fast")

DEFAULT_RANK = {"kfac": 64, "ekfac": 64, "ggn": 128}
BASIS_DTYPES = (None, torch.float32, torch.bfloat16)
CHOICES = ("evidence", "validation", "margins")
MARGIN_PAIRS = 128
"""Pairs, drawn by lot, whose margins and gradients choose λ by "margins"; both are means."""

HELD_OUT_EVERY = 10
"""Without validation pairs of its own, `prior_precision="validation"` keeps every tenth pair out of the fit."""

Precision = float | Literal["evidence", "validation", "margins"]


@dataclass(frozen=True)
class FitOptions:
    """What a fit was asked for; checked when it is made.

    Attributes:
        structure: "kfac", "ekfac" or "ggn".
        rank: eigenvectors kept, of each large side or, for ggn, of all sites together; None for all, "default" for
            `DEFAULT_RANK`.
        prior_precision: λ, "evidence", "validation" or "margins".
        second_pass: for ggn: sharpen the eigenvectors by a second pass over the pairs.
        basis_dtype: for ggn: what its eigenvectors are kept in, float32 or bfloat16; None for the model's.

    Raises:
        InputError: an unknown structure, a rank below 1, a λ that is not positive, or what is for ggn alone.
    """

    structure: str
    rank: int | Literal["default"] | None
    prior_precision: Precision
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

    def __post_init__(self) -> None:
        if self.structure not in DEFAULT_RANK:
            raise InputError(f"structure must be one of {', '.join(DEFAULT_RANK)}, not {self.structure!r}")
        if self.rank not in (None, "default") and (type(self.rank) is not int or self.rank < 1):
            raise InputError(f"rank must be a whole number of at least 1, or None for full rank, not {self.rank!r}")
        check_precision(self.prior_precision)
        if self.structure != "ggn" and (self.second_pass or self.basis_dtype is not None):
            raise InputError("second_pass and basis_dtype are for structure='ggn' alone")
        if self.basis_dtype not in BASIS_DTYPES:
            raise InputError(f"basis_dtype must be torch.float32 or torch.bfloat16, not {self.basis_dtype}")


def check_precision(precision: Precision) -> None:
    """Raise InputError unless this is a positive number or the name of a choice."""
    if isinstance(precision, str):
        if precision not in CHOICES:
            raise InputError(
                f"prior_precision must be a number, 'evidence', 'validation' or 'margins', not {precision!r}"
            )
    elif not (math.isfinite(precision) and precision > 0):
        raise InputError(f"the prior precision must be a positive number, not {precision}")


def fit_posterior(
    passes: Passes,
    segments: Sequence[Segment],
    validation: Sequence[Segment] | None,
    options: FitOptions,
    record: FitRecord,
    progress: Progress | None,
) -> Posterior:
    """Fit a posterior in one pass over the pairs for kfac and ggn, two for ekfac.

    Args:
        passes: the tapped model.
        segments: tokenized pairs, chosen first.
        validation: held-out pairs for `prior_precision="validation"`; None keeps every tenth of `segments` out.
        options: structure, rank and prior precision.
        record: what is known before the fit; the rest is filled in.
        progress: told the pairs done of all passes together.

    Raises:
        InputError: fewer than two pairs where some are to be held out; float16 gradients that overflow.
        StartAgain: a batch did not fit in memory; the next fit has smaller ones.
    """
    if options.prior_precision == "validation" and validation is None:
        if len(segments) < 2:
            raise InputError("prior_precision='validation' needs at least two pairs, or validation pairs of its own")
        validation = segments[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY] or segments[-1:]
        held_out = {id(segment) for segment in validation}
        segments = [segment for segment in segments if id(segment) not in held_out]
    if options.prior_precision != "validation":
        validation = None

    fits = {"kfac": _fit_kronecker, "ekfac": _fit_kronecker, "ggn": _fit_low_rank}
    counter = _Counter(progress, len(segments) * options.passes(len(segments)) + len(validation or ()))
    posterior = fits[options.structure](passes, segments, options, record, counter)
    if options.prior_precision == "evidence":
        choice = by_evidence(posterior)
    elif options.prior_precision == "margins":
        choice = by_margins(*margins_and_norms(passes, drawn(segments, MARGIN_PAIRS)))
    elif validation is not None:
        curve = variance_curve(passes, validation, posterior, GRID, counter.next_pass())
        choice = by_validation(*curve, GRID)
    else:
        posterior.prior_precision = cast(float, options.prior_precision)
        posterior.record = replace(posterior.record, prior={"method": "given"})
        return posterior
    posterior.prior_precision = choice.best
    prior = {"method": choice.method, "criterion": choice.criterion, "curve": [list(point) for point in choice.curve]}
    posterior.record = replace(posterior.record, prior=prior)
    return posterior


def _fit_kronecker(
    passes: Passes, segments: Sequence[Segment], options: FitOptions, record: FitRecord, counter: "_Counter"
) -> Posterior:
    sites, rank = passes.tapped.sites, options.kept
    short = [site for site in sites if rank is not None and rank > site.d]
    if short:
        warnings.warn(
            f"rank {rank} is larger than the {short[0].d} columns of {short[0].name}"
            f"{f' and {len(short) - 1} other sites' if len(short) > 1 else ''}; full rank is used there",
            stacklevel=6,
        )
    taps = {tap.name: tap for tap in passes.tapped.taps if isinstance(tap, LoraTap)}
    first = passes.shared_inputs(segments[0])
    input_owner = {
        tap.sites[0].name: taps[first[name]].sites[0].name for name, tap in taps.items() if first[name] in taps
    }
    moments = KroneckerMoments(sites, input_owner, rank, passes.device)
    log_likelihood = _gather(passes, segments, moments, counter)
    blocks = kfac_blocks(moments, rank, passes.tapped.gradient_dtype)
    if options.structure == "ekfac":
        measured = EigenvalueCorrection({name: (block.basis_p, block.basis_q) for name, block in blocks.items()})
        _gather(passes, segments, measured, counter)
        blocks = ekfac_blocks(blocks, measured)
    return KroneckerPosterior(sites, blocks, 1.0, _filled(record, passes, segments, log_likelihood))


def _fit_low_rank(
    passes: Passes, segments: Sequence[Segment], options: FitOptions, record: FitRecord, counter: "_Counter"
) -> Posterior:
    sites, dtype = passes.tapped.sites, passes.tapped.gradient_dtype
    memory = ggn_memory(passes, segments, options.kept, options.second_pass)
    logger.info("%s", memory)
    memory.refuse_what_does_not_fit()
    sketch = GgnSketch(sites, options.kept, len(segments), passes.device, dtype)
    log_likelihood = _gather(passes, segments, sketch, counter)
    if options.second_pass and not sketch.is_exact:
        omega, _ = sketch.eigenpairs(None)
        del sketch  # its sums are as much as the next one's
        sketch = GgnSketch(sites, options.kept, len(segments), passes.device, dtype, omega)
        _gather(passes, segments, sketch, counter)
    rows, eigenvalues = sketch.eigenpairs(options.kept)
    stored = dtype if options.basis_dtype is None else options.basis_dtype
    bases = {site.name: rows.pop(site.name).view(-1, site.r, site.d).to(stored) for site in sites}
    scale = eigenvalues.sqrt().diag()
    return LowRankPosterior.from_factor(sites, bases, scale, 1.0, _filled(record, passes, segments, log_likelihood))


def _gather(passes: Passes, segments: Sequence[Segment], consumer: Consumer, counter: "_Counter") -> float:
    """One pass with the likelihood's cotangents; the log likelihood of the pairs in nats."""
    log_likelihood = 0.0
    for rewards in passes.gather(segments, likelihood_cotangent, consumer, counter.next_pass()):
        margin = (rewards[:, 0] - rewards[:, 1]).double()
        log_likelihood += float(torch.nn.functional.logsigmoid(margin).sum())
    return log_likelihood


def _filled(record: FitRecord, passes: Passes, segments: Sequence[Segment], log_likelihood: float) -> FitRecord:
    weights = [weight.detach().double() for tap in passes.tapped.taps for weight in tap.weights]
    return replace(
        record,
        pairs=len(segments),
        log_likelihood=None if record.log_likelihood is None else log_likelihood,
        squared_norm=sum(float(weight.square().sum()) for weight in weights),
    )


class _SquaredNorms:
    """Consumer that adds up `‖J‖²` of each segment over the sites, in float64."""

    gradients_alone = True

    def __init__(self) -> None:
        self.total = torch.zeros(())  # shape: (N,) once there is a site

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        gradient = segment_outer(p, q, offsets)
        self.total = self.total.to(gradient.device) + gradient.square().sum((1, 2), dtype=torch.float64)


def margins_and_norms(passes: Passes, pairs: Sequence[Segment]) -> tuple[Tensor, Tensor]:  # shapes: (M,), (M,)
    """Reward differences of pairs and the squared norms of their gradients, float64."""
    margins, norms = torch.zeros(len(pairs), dtype=torch.float64), torch.zeros(len(pairs), dtype=torch.float64)
    for positions, rewards, consumer in passes.over(pairs, pair_cotangent, lambda _: _SquaredNorms()):
        margins[positions] = (rewards[:, 0] - rewards[:, 1]).double().cpu()
        norms[positions] = consumer.total.cpu()
    return margins, norms


def variance_curve(
    passes: Passes,
    pairs: Sequence[Segment],
    posterior: Posterior,
    precisions: Sequence[float],
    progress: Progress | None,
) -> tuple[Tensor, Tensor]:  # shapes: (M,), (L, M)
    """Reward differences of pairs, and their variances at every λ of a list, float64."""
    difference = torch.zeros(len(pairs), dtype=torch.float64)
    variance = torch.zeros(len(precisions), len(pairs), dtype=torch.float64)
    for positions, rewards, consumer in passes.over(
        pairs, pair_cotangent, lambda _: posterior.variance_curve_consumer(precisions), progress
    ):
        difference[positions] = (rewards[:, 0] - rewards[:, 1]).double().cpu()
        variance[:, positions] = consumer.variance.double().cpu()
    return difference, variance


class _Counter:
    """Counts the segments of several passes as one."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.before, self.latest = progress, total, 0, 0

    def next_pass(self) -> Progress | None:
        if self.progress is None:
            return None
        self.before += self.latest
        return self._tell

    def _tell(self, done: int, _: int) -> None:
        self.latest = done
        assert self.progress is not None
        self.progress(self.before + done, self.total)
