"""kfac and ekfac: from pairs to a block for each site."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bayesrm_fast.fit.moments import EigenvalueCorrection, KroneckerMoments
from bayesrm_fast.fit.options import FitOptions
from bayesrm_fast.fit.progress import PassCounter
from bayesrm_fast.fit.ranks import ALONE, Ranks
from bayesrm_fast.model.lora import LoraTap
from bayesrm_fast.model.passes import Passes, label_logits, likelihood_cotangent, rewards_in
from bayesrm_fast.posterior.kronecker import KroneckerBlock
from bayesrm_fast.sites import Site
from bayesrm_fast.text.examples import LabelledExample


def gather_blocks(
    passes: Passes,
    pairs: Sequence[LabelledExample],
    options: FitOptions,
    counter: PassCounter,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, dict[str, KroneckerBlock]]:  # shape: (M,)
    """The logits of the pairs' labels, and the blocks; one pass for kfac, two for ekfac."""
    sites, rank = passes.tapped.sites, options.kept
    _warn_of_full_rank(sites, rank)
    input_owner = _input_owners(passes, pairs[0])
    scalars, moments = ranks.gather(
        passes,
        pairs,
        likelihood_cotangent,
        lambda: KroneckerMoments(sites, input_owner, rank, passes.device),
        counter.next_pass(),
    )
    blocks = kfac_blocks(moments, rank, passes.tapped.gradient_dtype)
    if options.structure == "ekfac":
        small = ranks.from_first({name: block.basis_p for name, block in blocks.items()})
        large = ranks.from_first({name: block.basis_q for name, block in blocks.items()})
        blocks = {n: replace(block, basis_p=small[n], basis_q=large[n]) for n, block in blocks.items()}
        bases = {name: (block.basis_p, block.basis_q) for name, block in blocks.items()}
        _, measured = ranks.gather(
            passes, pairs, likelihood_cotangent, lambda: EigenvalueCorrection(bases), counter.next_pass()
        )
        blocks = ekfac_blocks(blocks, measured)
    return label_logits(rewards_in(scalars), pairs), blocks


def _warn_of_full_rank(sites: Sequence[Site], rank: int | None) -> None:
    short = [site for site in sites if rank is not None and rank > site.d]
    if short:
        others = f" and {len(short) - 1} other sites" if len(short) > 1 else ""
        warnings.warn(
            f"rank {rank} is larger than the {short[0].d} columns of {short[0].name}{others}; full rank is used there",
            stacklevel=2,
        )


def _input_owners(passes: Passes, pair: LabelledExample) -> dict[str, str]:
    """For each site of an A, the site of the first A that is called on the same tensor."""
    taps = {tap.name: tap for tap in passes.tapped.taps if isinstance(tap, LoraTap)}
    first = passes.shared_inputs(pair)
    return {tap.sites[0].name: taps[first[name]].sites[0].name for name, tap in taps.items() if first[name] in taps}


def kfac_blocks(moments: KroneckerMoments, rank: int | None, dtype: torch.dtype) -> dict[str, KroneckerBlock]:
    """Blocks `P ⊗ Q`: `E_ij = γ_i μ_j`, and outside the basis γ_i times the mean of the μ left out."""
    large = {name: moment.eigenbasis(rank) for name, moment in moments.large.items()}
    bases = {name: basis.vectors.to(dtype) for name, basis in large.items()}
    blocks = {}
    for site in moments.sites:
        owner = moments.large_owner(site.name)
        small = moments.small[site.name].eigenbasis(None)
        gamma = small.values / moments.small[site.name].tokens.clamp(min=1)
        blocks[site.name] = KroneckerBlock(
            basis_p=small.vectors.to(dtype),
            basis_q=bases[owner],
            eigenvalues=torch.outer(gamma, large[owner].values).to(dtype),
            tail=(gamma * large[owner].tail).to(dtype),
        )
    return blocks


def ekfac_blocks(blocks: Mapping[str, KroneckerBlock], measured: EigenvalueCorrection) -> dict[str, KroneckerBlock]:
    """The same bases with measured eigenvalues."""
    return {
        name: KroneckerBlock(
            basis_p=block.basis_p,
            basis_q=block.basis_q,
            eigenvalues=measured.inside[name].to(block.eigenvalues.dtype),
            tail=(measured.outside[name] / max(block.outside, 1)).to(block.tail.dtype),
        )
        for name, block in blocks.items()
    }
