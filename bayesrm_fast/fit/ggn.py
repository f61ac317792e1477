"""ggn: from pairs to the leading eigenpairs of the whole GGN."""

import logging
from collections.abc import Sequence

from torch import Tensor

from bayesrm_fast.fit.memory import ggn_memory
from bayesrm_fast.fit.options import FitOptions
from bayesrm_fast.fit.progress import PassCounter
from bayesrm_fast.fit.ranks import ALONE, Ranks
from bayesrm_fast.fit.sketches import GgnSketch
from bayesrm_fast.model.passes import Passes, label_logits, likelihood_cotangent, rewards_in
from bayesrm_fast.posterior.stored_basis import StoredBasis
from bayesrm_fast.text.examples import LabelledExample

logger = logging.getLogger("bayesrm_fast")


def gather_eigenpairs(
    passes: Passes,
    pairs: Sequence[LabelledExample],
    options: FitOptions,
    counter: PassCounter,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, dict[str, StoredBasis], Tensor]:  # shapes: (M,), [(K, r, d)], (K,)
    """The logits of the pairs' labels; eigenvectors, a part for each site; and eigenvalues, float64.

    Raises:
        InputError: the fit does not fit in memory; the message says what rank would.
    """
    sites, dtype = passes.tapped.sites, passes.tapped.gradient_dtype
    memory = ggn_memory(passes, pairs, options.kept, options.second_pass)
    logger.info("%s", memory)
    memory.refuse_what_does_not_fit()

    def sketch(omega: dict[str, Tensor] | None) -> GgnSketch:
        before = ranks.before(len(pairs))
        return GgnSketch(sites, options.kept, len(pairs), passes.device, dtype, omega, before)

    scalars, first = ranks.gather(passes, pairs, likelihood_cotangent, lambda: sketch(None), counter.next_pass())
    latest = first
    if options.second_pass and not first.is_exact:
        omega = ranks.from_first(first.eigenpairs(None)[0])
        del first, latest  # their sums are as much as the next one's
        _, latest = ranks.gather(passes, pairs, likelihood_cotangent, lambda: sketch(omega), counter.next_pass())
    rows, eigenvalues = latest.eigenpairs(options.kept)
    stored = dtype if options.basis_dtype is None else options.basis_dtype
    bases = {site.name: StoredBasis.of(rows.pop(site.name).view(-1, site.r, site.d), stored) for site in sites}
    return label_logits(rewards_in(scalars), pairs), bases, eigenvalues
