"""The leading eigenpairs of the whole GGN: sketched, stored, projected on."""

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words
from tolerances import RELATIVE

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.fit.sketches import GGN_OVERSAMPLING, GgnSketch
from bayesrm_fast.posterior.base import FitRecord
from bayesrm_fast.posterior.ggn import GgnPosterior
from bayesrm_fast.sites import Site

CPU = torch.device("cpu")
SITES = [Site("a", 4, 40, "q"), Site("b", 3, 30, "q"), Site("c", 2, 60, "p")]
SIZE = sum(site.r * site.d for site in SITES)
RECORD = FitRecord("none", "", False, [1.0], 64, "ggn", 8, 1, 0.0, 0.0, {})


def gradients(pairs, ratio=0.8, dtype=torch.float64):
    """Of all sites side by side, with singular values that fall by `ratio` from one direction to the next."""
    generator = torch.Generator().manual_seed(pairs)
    left = torch.linalg.qr(torch.randn(pairs, pairs, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(SIZE, pairs, generator=generator, dtype=torch.float64)).Q
    return (left * ratio ** torch.arange(pairs, dtype=torch.float64) @ right.T).to(dtype)


def by_site(rows):
    parts = rows.split([site.r * site.d for site in SITES], 1)
    return {site.name: part for site, part in zip(SITES, parts, strict=True)}


def feed(consumer, rows):
    """Each gradient as one segment of r tokens, whose small sides are the unit vectors."""
    for site in SITES:
        part = by_site(rows)[site.name]
        p = torch.eye(site.r, dtype=rows.dtype).repeat(len(rows), 1)
        consumer.consume(site, p, part.reshape(-1, site.d), torch.arange(len(rows) + 1) * site.r)


def sketched(rows, rank, batches=(1000,), omega=None, dtype=torch.float64):
    sketch = GgnSketch(SITES, rank, len(rows), CPU, dtype, omega)
    for batch in rows.split(list(batches) if sum(batches) == len(rows) else 32):
        feed(sketch, batch)
    return sketch


def posterior_of(sketch, rank, precision=0.1, dtype=torch.float64):
    rows, values = sketch.eigenpairs(rank)
    bases = {site.name: rows[site.name].view(-1, site.r, site.d).to(dtype) for site in SITES}
    return GgnPosterior.from_factor(SITES, bases, values.sqrt().diag(), RECORD, precision)


def variances(posterior, rows):
    consumer = posterior.variance_consumer()
    feed(consumer, rows)
    return consumer.variance


def dense_variances(rows, curvature, precision):
    hessian = curvature + precision * torch.eye(len(curvature), dtype=torch.float64)
    return torch.linalg.vecdot(rows.double(), torch.linalg.solve(hessian, rows.double().T).T)


@pytest.mark.parametrize(("pairs", "rank"), [(20, 20), (20, 100), (20, None), (20, 8), (40, 8)])
def test_few_pairs_are_kept_as_they_are(pairs, rank):
    rows = gradients(pairs)
    sketch = sketched(rows, rank)
    assert sketch.is_exact
    _, values = sketch.eigenpairs(rank)
    expected = torch.linalg.eigvalsh(rows @ rows.T).flip(0)[:rank]
    torch.testing.assert_close(values, expected, rtol=RELATIVE[torch.float64], atol=0)
    if rank is None or rank >= pairs:
        seen, other = variances(posterior_of(sketch, rank), rows), dense_variances(rows, rows.T @ rows, 0.1)
        torch.testing.assert_close(seen, other, rtol=RELATIVE[torch.float64], atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("second_pass", [False, True])
def test_the_sketch_finds_the_leading_eigenvalues_of_a_decaying_spectrum(dtype, second_pass):
    rows = gradients(200, dtype=dtype)
    sketch = sketched(rows, 16, dtype=dtype)
    if second_pass:
        sketch = sketched(rows, 16, omega=sketch.eigenpairs(None)[0], dtype=dtype)
    assert not sketch.is_exact
    basis, values = sketch.eigenpairs(16)
    expected = 0.8 ** (2 * torch.arange(16, dtype=torch.float64))
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=0)
    flat = torch.cat([basis[site.name] for site in SITES], 1).double()
    # float32: the last of 16 eigenvalues is a thousandth of the first, and rounding grows by that.
    assert (flat @ flat.T - torch.eye(16)).abs().max() < (1e-10 if dtype == torch.float64 else 1e-3)


def test_a_second_pass_sharpens_a_spectrum_that_hardly_decays():
    rows = gradients(200, ratio=0.99)
    exact = torch.linalg.eigvalsh(rows @ rows.T).flip(0)[:16]
    first = sketched(rows, 16)
    second = sketched(rows, 16, omega=first.eigenpairs(None)[0])
    error = [(1 - s.eigenpairs(16)[1] / exact).abs().max() for s in (first, second)]
    assert error[1] < 0.7 * error[0]


@pytest.mark.parametrize("pairs", [20, 200])
def test_order_and_shards_of_the_pairs_change_nothing(pairs):
    rows = gradients(pairs)
    whole = sketched(rows, 8)
    turned = sketched(rows.flip(0), 8, batches=[pairs // 4, pairs - pairs // 4])
    shards = [GgnSketch(SITES, 8, pairs, CPU, torch.float64) for _ in range(2)]
    feed(shards[0], rows[: pairs // 3])
    feed(shards[1], rows[pairs // 3 :])
    shards[0].merge(shards[1])
    tests = gradients(30)
    expected = variances(posterior_of(whole, 8), tests)
    for other in (turned, shards[0]):
        torch.testing.assert_close(variances(posterior_of(other, 8), tests), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("precision", [1e-4, 0.1, 10.0])
def test_rounding_the_bases_errs_by_no_more_than_their_rounding(precision):
    """With `F̃ = F + E`, `|E| ≤ 2⁻⁹|F|`: `|v̂/v − 1| ≤ ‖Σ^½ (F̃ᵀF̃ − FᵀF) Σ^½‖ ≤ 2 ‖EΣ^½‖ ‖FΣ^½‖ ≤ 2⁻⁸ √(tr GGN / λ)`."""
    rows = gradients(20)
    sketch = sketched(rows, None)
    exact = variances(posterior_of(sketch, None, precision), rows)
    rounded = posterior_of(sketch, None, precision, torch.bfloat16)
    bound = 2**-8 * (float(rows.square().sum()) / precision) ** 0.5
    assert (variances(rounded, rows) / exact - 1).abs().max() < bound
    flat = torch.cat([basis.flatten(1).double() for basis in rounded.bases.values()], 1)
    directions = rounded.transform @ flat
    torch.testing.assert_close(directions @ directions.T, torch.eye(20, dtype=torch.float64), rtol=0, atol=1e-6)


def test_digits_are_kept_where_a_gradient_lies_almost_in_the_bases():
    rows = gradients(20, ratio=0.9, dtype=torch.float32)
    posterior = posterior_of(sketched(rows, None, dtype=torch.float32), None, 1e-6, torch.float32)
    outside = torch.linalg.qr(torch.cat([rows, torch.ones(1, SIZE)]).double().T).Q[:, -1]
    tests = (rows[:5].double() + 1e-4 * rows[:5].double().norm(dim=1)[:, None] * outside).float()
    expected = dense_variances(tests, rows.double().T @ rows.double(), 1e-6)
    assert (expected > 1e-9 / 1e-6 * tests.double().square().sum(1)).all()
    # What is outside is 1e-4 of a gradient that itself is rounded by 6e-8.
    torch.testing.assert_close(variances(posterior, tests).double(), expected, rtol=2 * 6e-8 / 1e-4 * 2, atol=0)


def test_the_conditional_posterior_of_some_sites():
    rows = gradients(20)
    posterior = posterior_of(sketched(rows, None), None).conditional(SITES[1:])
    start = SITES[0].r * SITES[0].d
    consumer = posterior.variance_consumer()
    for site in SITES[1:]:
        p = torch.eye(site.r, dtype=torch.float64).repeat(20, 1)
        consumer.consume(site, p, by_site(rows)[site.name].reshape(-1, site.d), torch.arange(21) * site.r)
    some = rows[:, start:]
    torch.testing.assert_close(consumer.variance, dense_variances(some, some.T @ some, 0.1), rtol=1e-8, atol=0)


@pytest.mark.parametrize("pairs", [5, 200])
def test_a_site_that_no_backward_pass_reaches_is_refused(pairs):
    rows = gradients(pairs)
    sketch = GgnSketch([*SITES, Site("unused", 2, 8, "q")], 8, pairs, CPU, torch.float64)
    feed(sketch, rows[:3])
    feed(sketch, rows[3:])
    with pytest.raises(InputError, match="does not depend on: unused"):
        sketch.eigenpairs(8)


def test_of_fewer_weights_than_columns_the_sketch_is_still_whole():
    sites = [Site("a", 2, 5, "q")]
    rows = torch.randn(200, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sketch = GgnSketch(sites, 16, 200, CPU, torch.float64)
    p = torch.eye(2, dtype=torch.float64).repeat(200, 1)
    sketch.consume(sites[0], p, rows.reshape(-1, 5), torch.arange(201) * 2)
    _, values = sketch.eigenpairs(16)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(rows.T @ rows).flip(0), rtol=1e-8, atol=0)


@pytest.mark.parametrize("pairs", [5, 200])
def test_pairs_that_say_nothing_leave_the_prior(pairs):
    posterior = posterior_of(sketched(torch.zeros(pairs, SIZE, dtype=torch.float64), 8), 8)
    rows = gradients(4)
    torch.testing.assert_close(variances(posterior, rows), rows.square().sum(1) / 0.1)
    assert posterior.effective_parameters() == 0.0
    assert posterior.conditional(SITES[1:]).eigenvalues.numel() == 0


def test_variances_at_other_prior_precisions_and_evidence():
    rows = gradients(20)
    posterior = posterior_of(sketched(rows, None), None)
    curve = posterior.variance_curve_consumer([0.01, 5.0])
    feed(curve, rows)
    for precision, seen in zip([0.01, 5.0], curve.variance, strict=True):
        expected = dense_variances(rows, rows.T @ rows, precision)
        torch.testing.assert_close(seen, expected, rtol=RELATIVE[torch.float64], atol=0)
    hessian = rows.T @ rows + 5.0 * torch.eye(SIZE, dtype=torch.float64)
    assert posterior.log_determinant(5.0) == pytest.approx(float(torch.linalg.slogdet(hessian)[1]), rel=1e-10)


@pytest.fixture
def adapter():
    return BayesianRewardModel(tiny_adapter("bert"), tiny_tokenizer("bert"))


def test_what_does_not_fit_is_refused_with_the_rank_that_would(adapter, monkeypatch):
    parameters = sum(site.r * site.d for site in adapter.fit(tiny_pairs(), rank=2).posterior.sites)
    before = adapter.posterior
    pairs = tiny_pairs(120)
    monkeypatch.setattr("bayesrm_fast.fit.memory.free_bytes", lambda _: 200 * 4 * parameters)
    with pytest.raises(InputError, match=r"rank=60 does not fit: the fit keeps .* MiB of .* MiB .*rank=(\d+) would"):
        adapter.fit(pairs, structure="ggn", rank=60)
    assert adapter.posterior is before
    with pytest.raises(InputError) as refused:
        adapter.fit(pairs, structure="ggn", rank=60)
    advised = int(str(refused.value).split("rank=")[2].split()[0])
    assert adapter.fit(pairs, structure="ggn", rank=advised).posterior.record.rank == advised


def test_more_pairs_than_columns_and_a_second_pass_through_a_model(adapter):
    pairs = tiny_pairs(2 * GGN_OVERSAMPLING + 20)
    texts = [words(3, 1)] * 6, [words(5, i) for i in range(6)]
    exact = adapter.fit(pairs, structure="ggn", rank=None, prior_precision=1.0).score(*texts).variance
    errors = []
    for second_pass in (False, True):
        adapter.fit(pairs, structure="ggn", rank=GGN_OVERSAMPLING, prior_precision=1.0, second_pass=second_pass)
        assert len(adapter.posterior.eigenvalues) == GGN_OVERSAMPLING
        variance = adapter.score(*texts).variance
        assert (variance > exact * (1 - 1e-4)).all()  # the prior outside of the eigenvectors only adds
        errors.append(float((variance / exact - 1).mean()))
    assert errors[1] <= errors[0] * (1 + 1e-3) < 1.0


@pytest.mark.parametrize("options", [{"second_pass": True}, {"basis_dtype": torch.bfloat16}])
def test_options_of_ggn_are_refused_elsewhere(adapter, options):
    with pytest.raises(InputError, match="for structure='ggn' alone"):
        adapter.fit(tiny_pairs(), structure="kfac", **options)
    with pytest.raises(InputError, match="basis_dtype must be"):
        adapter.fit(tiny_pairs(), structure="ggn", basis_dtype=torch.float16)


@pytest.mark.parametrize("basis_dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded(adapter, tmp_path, basis_dtype):
    texts = [words(3, 1)] * 4, [words(5, i) for i in range(4)]
    adapter.fit(tiny_pairs(), structure="ggn", basis_dtype=basis_dtype)
    expected = adapter.score(*texts).variance
    from bayesrm_fast.posterior.files import load_posterior, save_posterior

    save_posterior(adapter.posterior, tmp_path)
    adapter.posterior = load_posterior(tmp_path)
    assert adapter.posterior.bases[adapter.posterior.sites[0].name].dtype == basis_dtype
    assert torch.equal(adapter.score(*texts).variance, expected)
