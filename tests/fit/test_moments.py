"""Second moments: whole, sketched, and in shards."""

import pytest
import torch

from bayesrm_fast.fit import moments
from bayesrm_fast.fit.moments import KroneckerMoments, SecondMoment
from bayesrm_fast.sites import Site

CPU = torch.device("cpu")


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(moments, "LARGEST_FULL_MOMENT", 32)


def decaying(tokens, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    scale = 0.7 ** torch.arange(size, dtype=torch.float64)
    return torch.randn(tokens, size, generator=generator, dtype=torch.float64) * scale @ basis.T


@pytest.mark.parametrize("rank", [1, 8, 40, None])
def test_whole_moment_gives_the_leading_eigenpairs_and_the_mean_of_the_rest(rank):
    x = decaying(200, 40)
    moment = SecondMoment(40, rank, CPU)
    moment.add(x[:120])
    moment.add(x[120:])
    basis = moment.eigenbasis(rank)
    values, _ = torch.linalg.eigh(x.T @ x)
    values = values.flip(0)
    k = 40 if rank is None else rank
    torch.testing.assert_close(basis.values, values[:k].clamp(min=0), rtol=1e-10, atol=1e-10)
    residual = x.T @ x @ basis.vectors - basis.vectors * basis.values
    assert residual.norm() < 1e-10 * values[0]
    if k < 40:
        torch.testing.assert_close(basis.tail, values[k:].mean(), rtol=1e-8, atol=1e-12)


def test_sketch_finds_a_decaying_spectrum(small_limit):
    x = decaying(500, 96)
    moment = SecondMoment(96, 8, CPU)
    moment.add(x)
    assert moment.omega is not None
    assert moment.total.shape == (96, 8 + moments.OVERSAMPLING)
    basis = moment.eigenbasis(8)
    values = torch.linalg.eigvalsh(x.T @ x).flip(0)
    # Tropp et al. (2017), theorem 4.1: the error is of the order of the spectrum beyond the sketch's 24 columns,
    # 0.7^48 of the largest value.
    torch.testing.assert_close(basis.values, values[:8], rtol=1e-5, atol=0)
    assert (basis.vectors.T @ basis.vectors - torch.eye(8, dtype=torch.float64)).abs().max() < 1e-10
    torch.testing.assert_close(basis.tail * 88, x.square().sum() - basis.values.sum(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("tokens", [0, 3])
def test_sketch_of_fewer_tokens_than_columns_is_exact(small_limit, tokens):
    x = decaying(tokens, 96)
    moment = SecondMoment(96, 8, CPU)
    moment.add(x)
    basis = moment.eigenbasis(8)
    assert basis.values.isfinite().all()
    approximation = basis.vectors * basis.values @ basis.vectors.T
    torch.testing.assert_close(approximation, x.T @ x, rtol=1e-6, atol=1e-9)


def test_full_rank_is_never_sketched(small_limit):
    assert SecondMoment(96, None, CPU).omega is None


@pytest.mark.parametrize("size", [24, 96])
def test_shards_add_up(small_limit, size):
    x = decaying(60, size)
    whole, first, second = (SecondMoment(size, 6, CPU) for _ in range(3))
    whole.add(x)
    first.add(x[:25])
    second.add(x[25:])
    first.merge(second)
    torch.testing.assert_close(first.total, whole.total, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(first.trace, whole.trace)


def test_shared_inputs_are_gathered_once_and_moments_merge():
    sites = [Site("q.lora_A", 2, 5, "q"), Site("k.lora_A", 2, 5, "q"), Site("q.lora_B", 2, 4, "p")]
    owner = {"q.lora_A": "q.lora_A", "k.lora_A": "q.lora_A"}
    shards = [KroneckerMoments(sites, owner, 3, CPU) for _ in range(3)]
    assert set(shards[0].large) == {"q.lora_A", "q.lora_B"}
    generator = torch.Generator().manual_seed(0)
    for shard in (1, 2):
        for site in sites:
            p, q = torch.randn(4, site.r, generator=generator), torch.randn(4, site.d, generator=generator)
            for target in (shards[0], shards[shard]):
                target.consume(site, p, q, torch.tensor([0, 4]))
    shards[1].merge(shards[2])
    assert shards[1].tokens == shards[0].tokens
    torch.testing.assert_close(shards[1].large["q.lora_A"].total, shards[0].large["q.lora_A"].total)
    torch.testing.assert_close(shards[1].small["k.lora_A"].total, shards[0].small["k.lora_A"].total)
