"""From preference pairs to a posterior."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch

from bayesrm_fast.curvature import EigenvalueCorrection, KroneckerMoments
from bayesrm_fast.errors import InputError
from bayesrm_fast.passes import Passes, Progress, Segment, likelihood_cotangent, pair_cotangent
from bayesrm_fast.posterior import FitRecord, KroneckerPosterior, ekfac_blocks, kfac_blocks
from bayesrm_fast.prior import GRID, PriorChoice, VarianceCurveConsumer, by_evidence, by_validation
from bayesrm_fast.sites import LoraTap

STRUCTURES = ("kfac", "ekfac")
SEARCHES = ("evidence", "validation")
HELD_OUT_EVERY = 10
"""Without validation pairs of its own, `prior_precision="validation"` keeps every tenth pair out of the fit."""

Precision = float | Literal["evidence", "validation"]


@dataclass(frozen=True)
class FitOptions:
    """What a fit was asked for; checked when it is made.

    Attributes:
        structure: "kfac" or "ekfac".
        rank: eigenvectors kept of each large side; None for all.
        prior_precision: λ, "evidence" or "validation".

    Raises:
        InputError: an unknown structure, a rank below 1, or a λ that is not positive.
    """

    structure: str
    rank: int | None
    prior_precision: Precision

    def __post_init__(self) -> None:
        if self.structure not in STRUCTURES:
            raise InputError(f"structure must be one of {', '.join(STRUCTURES)}, not {self.structure!r}")
        if self.rank is not None and (not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1):
            raise InputError(f"rank must be a whole number of at least 1, or None for full rank, not {self.rank!r}")
        if isinstance(self.prior_precision, str):
            if self.prior_precision not in SEARCHES:
                raise InputError(
                    f"prior_precision must be a number, 'evidence' or 'validation', not {self.prior_precision!r}"
                )
        elif not (math.isfinite(self.prior_precision) and self.prior_precision > 0):
            raise InputError(f"the prior precision must be a positive number, not {self.prior_precision}")


def fit_posterior(
    passes: Passes,
    segments: Sequence[Segment],
    validation: Sequence[Segment] | None,
    options: FitOptions,
    record: FitRecord,
    progress: Progress | None,
) -> KroneckerPosterior:
    """Fit a posterior in one pass over the pairs for kfac and two for ekfac.

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

    counter = _Counter(progress, len(segments) * (2 if options.structure == "ekfac" else 1) + len(validation or ()))
    sites = passes.tapped.sites
    rank = options.rank
    short = [site for site in sites if rank is not None and rank > site.d]
    if short:
        warnings.warn(
            f"rank {rank} is larger than the {short[0].d} columns of {short[0].name}"
            f"{f' and {len(short) - 1} other sites' if len(short) > 1 else ''}; full rank is used there",
            stacklevel=3,
        )
    taps = {tap.name: tap for tap in passes.tapped.taps if isinstance(tap, LoraTap)}
    first = passes.shared_inputs(segments[0])
    input_owner = {
        tap.sites[0].name: taps[first[name]].sites[0].name for name, tap in taps.items() if first[name] in taps
    }

    moments = KroneckerMoments(sites, input_owner, rank, passes.device)
    log_likelihood = 0.0
    for rewards in passes.gather(segments, likelihood_cotangent, moments, counter.next_pass()):
        margin = (rewards[:, 0] - rewards[:, 1]).double()
        log_likelihood += float(torch.nn.functional.logsigmoid(margin).sum())
    dtype = torch.promote_types(rewards.dtype, torch.float32)
    blocks = kfac_blocks(moments, rank, dtype)
    if options.structure == "ekfac":
        measured = EigenvalueCorrection({name: (block.basis_p, block.basis_q) for name, block in blocks.items()})
        for _ in passes.gather(segments, likelihood_cotangent, measured, counter.next_pass()):
            pass
        blocks = ekfac_blocks(blocks, measured)

    squared_norm = sum(
        float(weight.detach().double().square().sum()) for tap in passes.tapped.taps for weight in tap.weights
    )
    record = replace(record, pairs=len(segments), log_likelihood=log_likelihood, squared_norm=squared_norm)
    posterior = KroneckerPosterior(sites, blocks, 1.0, record)
    if options.prior_precision == "evidence":
        choice = by_evidence(posterior)
    elif validation is not None:
        choice = _choose_by_validation(passes, validation, posterior, counter.next_pass())
    else:
        return KroneckerPosterior(
            sites, blocks, cast(float, options.prior_precision), replace(record, prior={"method": "given"})
        )
    prior = {"method": choice.method, "criterion": choice.criterion, "curve": [list(point) for point in choice.curve]}
    return KroneckerPosterior(sites, blocks, choice.best, replace(record, prior=prior))


def _choose_by_validation(
    passes: Passes, validation: Sequence[Segment], posterior: KroneckerPosterior, progress: Progress | None
) -> PriorChoice:
    difference = torch.zeros(len(validation), dtype=torch.float64)
    variance = torch.zeros(len(GRID), len(validation), dtype=torch.float64)
    for positions, rewards, consumer in passes.over(
        validation, pair_cotangent, lambda _: VarianceCurveConsumer(posterior, GRID), progress
    ):
        difference[positions] = (rewards[:, 0] - rewards[:, 1]).double().cpu()
        variance[:, positions] = consumer.variance.double().cpu()
    return by_validation(difference, variance, GRID)


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
