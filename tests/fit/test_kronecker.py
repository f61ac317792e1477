"""From moments to blocks; what each is made of is compared with a dense reference in tests/posterior."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from posterior.structures import CPU, SHAPES, Case, Tokens, feed, merged, variances
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.fit.kronecker import ekfac_blocks, kfac_blocks
from bayesrm_fast.fit.moments import EigenvalueCorrection, KroneckerMoments
from bayesrm_fast.posterior.kronecker import KroneckerPosterior


def test_kfac_averages_over_tokens_and_keeps_the_trace():
    shape = SHAPES["three sites"]
    tokens = shape.tokens(shape.fitted, 1, torch.float64)
    moments = merged(lambda _: KroneckerMoments(shape.sites, {}, 5, CPU), [[tokens]], shape.sites)
    for site in shape.sites:
        block = kfac_blocks(moments, 5, torch.float64)[site.name]
        p, q, _ = tokens.by_site[site.name]
        trace = p.square().sum() * q.square().sum() / len(p)
        torch.testing.assert_close(block.eigenvalues.sum() + block.outside * block.tail.sum(), trace)


def test_sites_without_a_token_have_blocks_of_zeros():
    shape = SHAPES["a shared input"]
    none = shape.tokens([0, 0], 1, torch.float64)
    moments = merged(lambda _: KroneckerMoments(shape.sites, shape.owners, 5, CPU), [[none]], shape.sites)
    for block in kfac_blocks(moments, 5, torch.float64).values():
        assert not block.eigenvalues.any()
        assert not block.tail.any()


def test_ekfac_keeps_the_bases_and_the_sum_of_all_squared_gradients():
    shape = SHAPES["three sites"]
    tokens = shape.tokens(shape.fitted, 1, torch.float64)
    moments = merged(lambda _: KroneckerMoments(shape.sites, {}, 5, CPU), [[tokens]], shape.sites)
    before = kfac_blocks(moments, 5, torch.float64)
    bases = {name: (block.basis_p, block.basis_q) for name, block in before.items()}
    for name, block in ekfac_blocks(before, feed(EigenvalueCorrection(bases), tokens, shape.sites)).items():
        assert block.basis_p is before[name].basis_p
        assert block.basis_q is before[name].basis_q
        total = float(block.eigenvalues.sum() + block.outside * block.tail.sum())
        assert total == pytest.approx((tokens.gradients(name) ** 2).sum(), rel=1e-10)


@settings(max_examples=12, deadline=None)
@given(count=st.integers(1, 11), factor=st.floats(0, 100))
def test_more_pairs_never_raise_an_ekfac_variance_at_fixed_bases(count, factor):
    case = Case("ekfac", 5, "three sites", torch.float64)
    fitted = case.fit()
    bases = {name: (block.basis_p, block.basis_q) for name, block in fitted.blocks.items()}
    some, rest = case.fitted_tokens.batches(count)
    rest = Tokens({name: (factor * p, q, offsets) for name, (p, q, offsets) in rest.by_site.items()})
    found = []
    for batches in ([some], [some, rest]):
        blocks = ekfac_blocks(fitted.blocks, merged(lambda _: EigenvalueCorrection(bases), [batches], case.sites))
        found.append(variances(KroneckerPosterior(case.sites, blocks, fitted.record, 0.5), case.scored_tokens))
    assert (found[1] <= found[0] * (1 + 1e-12)).all()


@pytest.fixture
def rm():
    return BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))


def test_layers_on_one_input_share_its_basis(rm):
    blocks = rm.fit(tiny_pairs(), structure="ekfac", rank=4).posterior.blocks
    layer = "model.layers.1."
    q = blocks[f"{layer}self_attn.q_proj.lora_A"].basis_q
    assert blocks[f"{layer}self_attn.v_proj.lora_A"].basis_q is q
    assert blocks[f"{layer}mlp.gate_proj.lora_A"].basis_q is blocks[f"{layer}mlp.up_proj.lora_A"].basis_q
    assert blocks[f"{layer}mlp.gate_proj.lora_A"].basis_q is not q
    assert blocks["model.layers.0.self_attn.q_proj.lora_A"].basis_q is not q
    assert blocks[f"{layer}self_attn.q_proj.lora_B"].basis_q is not q


def test_a_rank_beyond_some_sites_columns_is_said_once_and_one_within_is_not(rm):
    with pytest.warns(UserWarning, match=r"rank 20 is larger than the 16 columns of .*q_proj\.lora_A and \d+ other"):
        rm.fit(tiny_pairs(), structure="kfac", rank=20)
    for rank in (8, None):  # key and value have eight outputs
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="rank")
            rm.fit(tiny_pairs(), structure="kfac", rank=rank)
