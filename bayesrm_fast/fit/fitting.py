"""From preference pairs, or labelled steps, to a posterior."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.fit.ggn import gather_eigenpairs
from bayesrm_fast.fit.kronecker import gather_blocks
from bayesrm_fast.fit.options import FitOptions
from bayesrm_fast.fit.prior import GRID, by_evidence, by_margins, by_validation, margins_and_norms, variance_curve
from bayesrm_fast.fit.progress import PassCounter
from bayesrm_fast.fit.ranks import ALONE, Ranks
from bayesrm_fast.model.offloaded import bringing
from bayesrm_fast.model.passes import Passes, Progress, drawn
from bayesrm_fast.posterior.base import FitRecord, ModelRecord, Posterior, PriorChoice
from bayesrm_fast.posterior.ggn import GgnPosterior
from bayesrm_fast.posterior.kronecker import KroneckerPosterior
from bayesrm_fast.text.examples import LabelledExample, group_numbers
from bayesrm_fast.versions import library_versions

MARGIN_PAIRS = 128
"""Pairs, drawn by lot, whose margins and gradients choose λ by "margins"; both are means."""

BEYOND_FLOAT = (
    "the curvature is NaN or infinite: the pairs' gradients are too large; are the head's weights?"
    """Of what is summed over the pairs: squares, which float32 has up to 1e38."""
)

HELD_OUT_EVERY = 10
"""Without validation pairs of its own, `prior_precision="validation"` keeps every tenth pair out of the fit."""


def fit_posterior(
    passes: Passes,
    pairs: Sequence[LabelledExample],
    validation: Sequence[LabelledExample] | None,
    options: FitOptions,
    model: ModelRecord,
    *,
    is_labelled: bool = True,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Posterior:
    """Fit a posterior: one pass over the pairs for kfac and ggn, two for ekfac.

    Args:
        passes: the tapped model.
        pairs: tokenized, chosen first; or the steps of responses.
        validation: held-out pairs for `prior_precision="validation"`; None keeps every tenth of `pairs` out.
        options: with a prior precision.
        model: that the posterior belongs to.
        is_labelled: whether somebody said which of a pair is better.
        progress: told the pairs done of all passes together.
        ranks: that fit together, and end with the same posterior.

    Raises:
        InputError: fewer than two pairs where some are to be held out; float16 gradients that overflow.
    """
    if options.chosen != "validation":
        validation = None
    elif validation is None:
        pairs, validation = _split(pairs)
    counter = PassCounter(progress, len(pairs) * options.passes(len(pairs)) + len(validation or ()))
    try:
        posterior = _gathered(passes, pairs, options, model, is_labelled, counter, ranks)
    except torch.linalg.LinAlgError as error:  # of sums that are not finite
        raise InputError(BEYOND_FLOAT) from error
    if not all(tensor.isfinite().all() for tensor in posterior.tensors().values()):
        raise InputError(BEYOND_FLOAT)
    posterior.prior = _prior(passes, pairs, validation, options, posterior, counter, ranks)
    return posterior


def _split(pairs: Sequence[LabelledExample]) -> tuple[list[LabelledExample], list[LabelledExample]]:
    if len(pairs) < 2:
        raise InputError("prior_precision='validation' needs at least two pairs, or validation pairs of its own")
    numbers = group_numbers(pairs)
    count = max(numbers) + 1
    if count < 2:
        raise InputError("prior_precision='validation' needs steps of at least two responses")
    groups = set(range(HELD_OUT_EVERY // 2, count, HELD_OUT_EVERY)) or {count - 1}
    held_out = {i for i, number in enumerate(numbers) if number in groups}
    kept = [pair for i, pair in enumerate(pairs) if i not in held_out]
    return kept, [pairs[i] for i in sorted(held_out)]


def _gathered(
    passes: Passes,
    pairs: Sequence[LabelledExample],
    options: FitOptions,
    model: ModelRecord,
    is_labelled: bool,
    counter: PassCounter,
    ranks: Ranks,
) -> Posterior:
    """The posterior of these pairs, at a λ of 1."""
    sites = passes.tapped.sites

    def record(differences: Tensor) -> FitRecord:
        bring = bringing(passes.forward.model)
        weights = [bring(weight).detach().double() for tap in passes.tapped.taps for weight in tap.weights]
        likelihood = float(torch.nn.functional.logsigmoid(differences.double()).sum())
        return FitRecord(
            **vars(model),
            structure=options.structure,
            rank=options.kept,
            pairs=len(pairs),
            log_likelihood=likelihood if is_labelled else None,
            squared_norm=sum(float(weight.square().sum()) for weight in weights),
            versions=library_versions(),
        )

    if options.structure == "ggn":
        differences, bases, eigenvalues = gather_eigenpairs(passes, pairs, options, counter, ranks)
        found: Posterior = GgnPosterior.from_factor(sites, bases, eigenvalues.sqrt().diag(), record(differences), 1.0)
    else:
        differences, blocks = gather_blocks(passes, pairs, options, counter, ranks)
        found = KroneckerPosterior(sites, blocks, record(differences), 1.0)
    return found.from_tensors(sites, ranks.from_first(found.tensors()), found.record, found.prior, 1.0)


def _prior(
    passes: Passes,
    pairs: Sequence[LabelledExample],
    validation: Sequence[LabelledExample] | None,
    options: FitOptions,
    posterior: Posterior,
    counter: PassCounter,
    ranks: Ranks,
) -> PriorChoice:
    if options.chosen == "evidence":
        chosen = by_evidence(posterior)
    elif options.chosen == "margins":
        chosen = by_margins(*margins_and_norms(passes, drawn(pairs, MARGIN_PAIRS), ranks))
    elif isinstance(options.chosen, str):
        assert validation is not None
        curve = variance_curve(passes, validation, posterior, GRID, counter.next_pass(), ranks)
        chosen = by_validation(*curve, GRID)
    else:
        chosen = PriorChoice(float(options.chosen))
    return ranks.object_from_first(chosen)
