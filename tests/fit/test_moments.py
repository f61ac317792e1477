"""Second moments: whole, sketched, and in shards."""

import pytest
import torch
from cases import CASES
from formulas import BUDGET, inputs
from posterior.structures import SHAPES, feed

from bayesrm_fast.fit import moments
from bayesrm_fast.fit.moments import BLOCK, EigenvalueCorrection, KroneckerMoments, SecondMoment
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


def within_budget(found, expected, dtype):
    assert found.dtype == torch.float64
    assert (found - expected).abs().max() <= BUDGET[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [name for name, (lengths, *_) in CASES.items() if sum(lengths)])
def test_a_sum_of_products_is_added_to_what_is_there_whole_or_sketched(case, dtype, monkeypatch):
    """Columns in one block, in whole blocks and beyond them."""
    q = inputs(case, dtype)[1][:, :1000]
    size = q.shape[1]
    whole = SecondMoment(size, None, CPU)
    whole.total += 1
    whole.add(q)
    within_budget(whole.total, 1 + q.double().T @ q.double(), dtype)

    monkeypatch.setattr(moments, "LARGEST_FULL_MOMENT", 0)
    monkeypatch.setattr(moments, "OVERSAMPLING", 1)
    sketch = SecondMoment(size, 3, CPU)
    assert sketch.total.shape == (size, 4)
    for part in q.split(len(q) // 2 + 1):
        sketch.add(part)
    # The test matrix is rounded to the products' dtype, as every q is.
    omega = sketch.omega.to(torch.promote_types(dtype, torch.float32)).double()
    within_budget(sketch.total, q.double().T @ (q.double() @ omega), dtype)
    within_budget(sketch.trace, q.double().square().sum(), dtype)


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 77])
def test_every_block_of_a_whole_moment_is_its_own(size):
    x = torch.randn(50, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    moment = SecondMoment(size, None, CPU)
    moment.add(x)
    within_budget(moment.total, x.T @ x, torch.float64)
    torch.testing.assert_close(moment.trace, x.square().sum())


def test_every_shard_sketches_with_the_same_orthonormal_columns(small_limit):
    first, second = SecondMoment(96, 8, CPU), SecondMoment(96, 8, CPU)
    assert torch.equal(first.omega, second.omega)
    identity = torch.eye(8 + moments.OVERSAMPLING, dtype=torch.float64)
    torch.testing.assert_close(first.omega.T @ first.omega, identity, rtol=0, atol=1e-12)


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


def test_an_eigenvalue_correction_sums_squared_coordinates_over_segments_and_shards():
    shape = SHAPES["three sites"]
    tokens = shape.tokens(shape.fitted, 1, torch.float64)
    generator = torch.Generator().manual_seed(0)

    def orthonormal(rows, columns):
        return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q

    bases = {site.name: (orthonormal(site.r, site.r), orthonormal(site.d, 4)) for site in shape.sites}
    first, second = EigenvalueCorrection(bases), EigenvalueCorrection(bases)
    for consumer, batch in zip((first, second), tokens.batches(5), strict=True):
        feed(consumer, batch, shape.sites)
    first.merge(second)
    for site in shape.sites:
        v, u = bases[site.name]
        rotated = v.T @ torch.from_numpy(tokens.gradients(site.name)).view(-1, site.r, site.d)
        inside = rotated @ u
        torch.testing.assert_close(first.inside[site.name], inside.square().sum(0))
        outside = rotated.square().sum((0, 2)) - inside.square().sum((0, 2))
        torch.testing.assert_close(first.outside[site.name], outside)


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
    assert [m.tokens for m in shards[1].small.values()] == [m.tokens for m in shards[0].small.values()]
    torch.testing.assert_close(shards[1].large["q.lora_A"].total, shards[0].large["q.lora_A"].total)
    torch.testing.assert_close(shards[1].small["k.lora_A"].total, shards[0].small["k.lora_A"].total)
