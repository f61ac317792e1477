"""The linear algebra of the benchmark of smaller posteriors."""

import pytest
import torch

from bayesrm_fast.sites import Site
from benchmarks.posterior_size import BOUNDS, Curvature, projected, rank_for, rounded, variances

SITES = [Site("a", 2, 24, "q"), Site("b", 3, 40, "p")]
SIZE = sum(site.r * site.d for site in SITES)
PRECISIONS = (0.1, 1.0, 10.0)


def drawn(rows, seed):
    return torch.randn(rows, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(weighted, tested):
    identity = torch.eye(SIZE, dtype=torch.float64)
    return torch.stack(
        [((tested @ torch.linalg.inv(weighted.T @ weighted + one * identity)) * tested).sum(1) for one in PRECISIONS]
    )


@pytest.fixture(scope="module")
def case():
    weighted, tested = drawn(12, 0) * torch.logspace(0, -1, 12, dtype=torch.float64)[:, None], drawn(5, 1)
    return Curvature.of(weighted), tested, dense(weighted, tested)


def of(curvature, tested, rank):
    inside = tested @ curvature.eigenvectors[:rank].T
    return variances(inside, tested.square().sum(1), curvature.eigenvalues[:rank], PRECISIONS)


def test_all_eigenpairs_give_the_dense_variances(case):
    curvature, tested, exact = case
    torch.testing.assert_close(of(curvature, tested, None), exact)


@pytest.mark.parametrize("bound", BOUNDS)
def test_no_variance_is_over_the_bound(case, bound):
    curvature, tested, exact = case
    for index, precision in enumerate(PRECISIONS):
        ratio = of(curvature, tested, rank_for(curvature.eigenvalues, precision, bound))[index] / exact[index]
        assert 1 - 1e-9 < float(ratio.min()) <= float(ratio.max()) <= bound


def test_int8_turns_eigenvectors_little(case):
    """A number errs by a 127th of its row's largest, evenly between both halves of it. Where the largest is four
    deviations, that is 8e-5 of a row's squared norm; what a turn takes out of an eigenvector has 1 / λ in place of
    1 / (s + λ)."""
    curvature, tested, exact = case
    vectors, values = rounded(curvature.eigenvectors, curvature.eigenvalues, SITES, torch.int8)
    found = variances(tested @ vectors.T, tested.square().sum(1), values, PRECISIONS)
    assert not torch.equal(found, exact)
    for precision, own, true in zip(PRECISIONS, found, exact, strict=True):
        most = 8e-5 * float(1 + curvature.eigenvalues[0] / precision)
        torch.testing.assert_close(own, true, rtol=most, atol=0)


def test_a_projection_keeps_the_norm_of_what_has_one_number():
    mixed = projected(torch.eye(SIZE, dtype=torch.float64), SITES, 4)
    assert mixed.shape == (SIZE, SIZE // 4)
    torch.testing.assert_close(mixed.square().sum(1), torch.ones(SIZE, dtype=torch.float64))
