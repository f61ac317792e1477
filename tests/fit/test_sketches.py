"""The leading eigenpairs of the whole GGN: pairs' own gradients, or a sketch of them."""

import pytest
import torch

from bayesrm_fast import InputError
from bayesrm_fast.fit.sketches import GGN_OVERSAMPLING, GgnSketch, keeps_every_pair, sketch_columns
from bayesrm_fast.sites import Site

CPU = torch.device("cpu")
SITES = [Site("a", 4, 40, "q"), Site("b", 3, 30, "q"), Site("c", 2, 60, "p")]
SIZE = sum(site.r * site.d for site in SITES)


def gradients(pairs, ratio=0.8, dtype=torch.float64):
    """Of all sites side by side, with singular values that fall by `ratio` from one direction to the next."""
    generator = torch.Generator().manual_seed(pairs)
    left = torch.linalg.qr(torch.randn(pairs, pairs, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(SIZE, pairs, generator=generator, dtype=torch.float64)).Q
    return (left * ratio ** torch.arange(pairs, dtype=torch.float64) @ right.T).to(dtype)


def feed(sketch, rows, sites=SITES):
    """Each gradient as one segment of r tokens, whose small sides are the unit vectors."""
    for site, part in zip(sites, rows.split([site.r * site.d for site in sites], 1), strict=True):
        p = torch.eye(site.r, dtype=rows.dtype).repeat(len(rows), 1)
        sketch.consume(site, p, part.reshape(-1, site.d), torch.arange(len(rows) + 1) * site.r)


def sketched(rows, rank, batch=32, omega=None, dtype=torch.float64):
    sketch = GgnSketch(SITES, rank, len(rows), CPU, dtype, omega)
    for some in rows.split(batch):
        feed(sketch, some)
    return sketch


def approximation(sketch, rank):
    """The GGN that the eigenpairs make."""
    rows, values = sketch.eigenpairs(rank)
    flat = torch.cat([rows[site.name] for site in SITES], 1).double()
    return flat.T * values @ flat


@pytest.mark.parametrize(("pairs", "rank"), [(20, 20), (20, 100), (20, None), (20, 8), (40, 8)])
def test_few_pairs_are_kept_as_they_are_and_give_the_leading_eigenpairs_exactly(pairs, rank):
    rows = gradients(pairs)
    sketch = sketched(rows, rank)
    assert sketch.is_exact
    found, values = sketch.eigenpairs(rank)
    expected = torch.linalg.eigvalsh(rows @ rows.T).flip(0)[:rank]
    torch.testing.assert_close(values, expected, rtol=1e-8, atol=0)
    flat = torch.cat([found[site.name] for site in SITES], 1)
    torch.testing.assert_close(flat @ rows.T @ rows, values[:, None] * flat, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("rank", "pairs", "kept"),
    [(None, 10**6, True), (8, 8 + GGN_OVERSAMPLING, True), (8, 9 + GGN_OVERSAMPLING, False)],
)
def test_pairs_are_kept_where_they_are_no_more_than_a_sketchs_vectors(rank, pairs, kept):
    assert keeps_every_pair(rank, pairs) == kept
    assert GgnSketch(SITES, rank, pairs, CPU, torch.float32).is_exact == kept


def test_a_sketch_has_a_margin_beyond_the_rank_and_no_more_columns_than_weights():
    assert sketch_columns(8, SITES) == 8 + GGN_OVERSAMPLING
    assert sketch_columns(SIZE - 1, SITES) == SIZE


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
def test_order_batches_and_shards_of_the_pairs_change_nothing(pairs):
    rows = gradients(pairs)
    shards = [GgnSketch(SITES, 8, pairs, CPU, torch.float64, before=before) for before in (0, pairs // 3)]
    feed(shards[0], rows[: pairs // 3])
    feed(shards[1], rows[pairs // 3 :])
    shards[0].merge(shards[1])
    expected = approximation(sketched(rows, 8), 8)
    for other in (sketched(rows.flip(0), 8, batch=7), shards[0]):
        torch.testing.assert_close(approximation(other, 8), expected, rtol=0, atol=1e-8 * float(expected.trace()))


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
    feed(sketch, rows, sites)
    _, values = sketch.eigenpairs(16)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(rows.T @ rows).flip(0), rtol=1e-8, atol=0)


def test_a_sketch_of_pairs_that_say_nothing_has_no_eigenvalues():
    rows, values = sketched(torch.zeros(200, SIZE, dtype=torch.float64), 8).eigenpairs(8)
    assert not values.any()
    assert all(part.isfinite().all() for part in rows.values())
