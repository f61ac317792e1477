"""Rows that are stored rounded: by how much, and that every use of them is of the same numbers."""

import pytest
import torch

from bayesrm_fast.posterior.stored_basis import StoredBasis

DTYPES = [torch.float64, torch.bfloat16, torch.int8]


def rows(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return (
        scale
        * torch.randn(6, 3, 20, generator=generator, dtype=torch.float64)
        * torch.logspace(-9, 3, 6)[:, None, None]
    )


def widened(basis):
    return basis.combined(torch.eye(len(basis.values), dtype=torch.float64))


def test_int8_rounds_by_half_a_step_of_each_rows_own():
    exact = rows()
    found = widened(StoredBasis.of(exact, torch.int8)).view_as(exact)
    step = exact.abs().amax((1, 2), keepdim=True) / 127
    assert ((found - exact).abs() <= step / 2 * (1 + 1e-12)).all()


def test_int8_of_zeros_is_zero():
    basis = StoredBasis.of(torch.zeros(2, 3, 4), torch.int8)
    assert not widened(basis).any()
    assert basis.scale.isfinite().all()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_int8_of_a_row_that_is_not_finite_has_a_scale_that_says_so(broken):
    made = torch.ones(2, 3, 4)
    made[1, 0, 0] = broken
    assert StoredBasis.of(made, torch.int8).scale.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_and_gram_are_of_what_is_stored(dtype):
    basis = StoredBasis.of(rows(), dtype)
    stored = widened(basis)
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.randn(5, size, generator=generator, dtype=torch.float64) for size in (3, 20))
    gradients = torch.stack([(p[a:b].T @ q[a:b]).flatten() for a, b in ((0, 2), (2, 5))])
    products, squared_norm = basis.products(p, q, torch.tensor([0, 2, 5]))
    torch.testing.assert_close(products, gradients @ stored.T, rtol=1e-12, atol=0)
    torch.testing.assert_close(squared_norm, gradients.square().sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(basis.gram(), stored @ stored.T, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_give_it_back(dtype):
    basis = StoredBasis.of(rows(), dtype)
    again = StoredBasis.from_tensors("a", basis.tensors("a"))
    assert torch.equal(again.values, basis.values)
    torch.testing.assert_close(widened(again), widened(basis), rtol=0, atol=0)
    assert again.fault((6, 3, 20)) is None
    assert again.fault((5, 3, 20)) == "is [6, 3, 20], not [5, 3, 20]"
