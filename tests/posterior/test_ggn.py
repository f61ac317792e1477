"""ggn's stored bases: how rounded they may be, and the digits of what lies outside of them."""

import numpy as np
import pytest
import torch
from posterior.structures import PRIOR, RECORD, Case, Tokens, variances

from bayesrm_fast.posterior.ggn import GgnPosterior
from bayesrm_fast.posterior.linear_algebra import gram
from bayesrm_fast.posterior.stored_basis import StoredBasis
from bayesrm_fast.sites import Site

SITES = [Site("a", 4, 40, "q"), Site("b", 3, 30, "q"), Site("c", 2, 60, "p")]
SIZE = sum(site.r * site.d for site in SITES)
PAIRS = 20


def decaying(ratio, dtype=torch.float64):
    """Gradients of all sites side by side, with singular values that fall by `ratio` from one direction to the next."""
    generator = torch.Generator().manual_seed(PAIRS)
    left = torch.linalg.qr(torch.randn(PAIRS, PAIRS, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(SIZE, PAIRS, generator=generator, dtype=torch.float64)).Q
    return (left * ratio ** torch.arange(PAIRS, dtype=torch.float64) @ right.T).to(dtype)


def tokens(rows):
    """Each gradient as one segment of r tokens, whose small sides are the unit vectors."""
    by_site = {}
    for site, part in zip(SITES, rows.split([site.r * site.d for site in SITES], 1), strict=True):
        p = torch.eye(site.r, dtype=rows.dtype).repeat(len(rows), 1)
        by_site[site.name] = (p, part.reshape(-1, site.d), torch.arange(len(rows) + 1) * site.r)
    return Tokens(by_site)


def posterior_of(rows, precision, dtype):
    """Whose GGN is `Σ g gᵀ` of the rows, their orthonormal directions stored in a dtype."""
    _, singular, right = torch.linalg.svd(rows.double(), full_matrices=False)
    parts = right.split([site.r * site.d for site in SITES], 1)
    bases = {
        site.name: StoredBasis.of(part.view(-1, site.r, site.d), dtype) for site, part in zip(SITES, parts, strict=True)
    }
    return GgnPosterior.from_factor(SITES, bases, singular.diag(), RECORD, precision)


def dense_variances(rows, curvature, precision):
    hessian = curvature + precision * torch.eye(len(curvature), dtype=torch.float64)
    return torch.linalg.vecdot(rows.double(), torch.linalg.solve(hessian, rows.double().T).T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("precision", [1e-4, 0.1, 10.0])
def test_rounding_the_bases_errs_by_no_more_than_their_rounding(precision, dtype):
    """With `F̃ = F + E`: `|v̂/v − 1| ≤ ‖Σ^½ (F̃ᵀF̃ − FᵀF) Σ^½‖ ≤ 2 ‖EΣ^½‖ ‖FΣ^½‖`, and `‖FΣ^½‖ ≤ 1`.

    `|E| ≤ 2⁻⁹ |F|` in bfloat16, so `‖EΣ^½‖ ≤ 2⁻⁹ √(tr GGN / λ)`; in int8 the rounding of rows of norm 1 is what it is.
    """
    rows = decaying(0.8)
    exact = dense_variances(rows, rows.T @ rows, precision)
    rounded = posterior_of(rows, precision, dtype)
    bound = 2**-8 * (float(rows.square().sum()) / precision) ** 0.5
    if dtype == torch.int8:
        factor, stored = (
            torch.cat(
                [basis.combined(torch.eye(PAIRS).double()) for basis in posterior_of(rows, 1.0, one).bases.values()], 1
            )
            for one in (torch.float64, dtype)
        )
        error = (torch.linalg.svdvals(rows)[:, None] * (stored - factor)).norm() / precision**0.5
        bound = float(2 * error + error**2)
    assert (variances(rounded, tokens(rows)) / exact - 1).abs().max() < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_eigenvectors_of_rounded_bases_are_orthonormal(dtype):
    rounded = posterior_of(decaying(0.8), 0.1, dtype)
    directions = torch.cat([basis.combined(rounded.transform) for basis in rounded.bases.values()], 1)
    torch.testing.assert_close(directions @ directions.T, torch.eye(PAIRS, dtype=torch.float64), rtol=0, atol=1e-6)


def test_digits_are_kept_where_a_gradient_lies_almost_in_the_bases():
    rows = decaying(0.9, torch.float32)
    posterior = posterior_of(rows, 1e-6, torch.float32)
    outside = torch.linalg.qr(torch.cat([rows, torch.ones(1, SIZE)]).double().T).Q[:, -1]
    tests = (rows[:5].double() + 1e-4 * rows[:5].double().norm(dim=1)[:, None] * outside).float()
    expected = dense_variances(tests, rows.double().T @ rows.double(), 1e-6)
    assert (expected > 1e-9 / 1e-6 * tests.double().square().sum(1)).all()
    # What is outside is 1e-4 of a gradient that itself is rounded by 6e-8.
    found = variances(posterior, tokens(tests))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2 * 6e-8 / 1e-4 * 2, atol=0)


def test_a_gradient_inside_of_the_bases_never_has_a_negative_variance():
    """What is left outside of them is a difference whose rounding may be below zero, with a weight of 10¹²."""
    rows = decaying(0.99)
    found = variances(posterior_of(1e4 * rows, 1e-12, torch.float64), tokens(rows))
    assert (found >= 0).all()
    assert (found > 1e-6).any()  # of what is inside alone it would be some 10⁻⁸: the rounding does show


def test_a_factor_of_any_scale_gives_its_own_ggn():
    case = Case("ggn", None, "three sites", torch.float64)
    posterior = case.fit()
    scale = torch.randn(3, len(posterior.eigenvalues), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = GgnPosterior.from_factor(case.sites, posterior.bases, scale, RECORD, PRIOR)
    factor = torch.cat([basis.combined(scale) for basis in posterior.bases.values()], 1).numpy()
    assert len(other.eigenvalues) == 3
    torch.testing.assert_close(gram([torch.from_numpy(factor)]).trace(), other.eigenvalues.sum())
    expected = case.dense_covariance(case.jacobians, 0.5, factor.T @ factor).diagonal()
    np.testing.assert_allclose(variances(other, case.scored_tokens), expected, rtol=1e-8)
