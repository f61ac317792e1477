"""Eigenpairs from a factor's Gram matrix, against those of the whole matrix."""

import pytest
import torch

from bayesrm_fast.posterior.linear_algebra import SMALLEST_EIGENVALUE, by_columns, eigenpairs_of_factor, gram


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_columns_only_changes_the_layout():
    basis = normal(7, 3)
    turned = by_columns(basis)
    assert torch.equal(turned, basis)
    assert turned.stride() == (1, 7)
    assert by_columns(turned).data_ptr() == turned.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gram_matrix_of_rows_in_parts_is_summed_in_float64(dtype):
    rows = normal(5, 60).to(dtype)
    found = gram([rows[:, :20].view(5, 4, 5), rows[:, 20:]])
    torch.testing.assert_close(found, rows.double() @ rows.double().T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scaled", [False, True])
def test_eigenpairs_are_those_of_the_whole_matrix(scaled):
    rows = normal(6, 40)
    scale = normal(4, 6, seed=1) if scaled else None
    values, transform = eigenpairs_of_factor(rows @ rows.T, scale)
    factor = rows if scale is None else scale @ rows
    torch.testing.assert_close(values, torch.linalg.eigvalsh(factor.T @ factor).flip(0)[: len(factor)])
    vectors = transform @ rows
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(len(values), dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(vectors.T * values @ vectors, factor.T @ factor, rtol=1e-10, atol=1e-10)


def test_what_is_rounding_is_left_out():
    rows = torch.cat([normal(3, 40), torch.zeros(1, 40, dtype=torch.float64)])
    rows[3] = rows[0] - 2 * rows[1]
    values, transform = eigenpairs_of_factor(rows @ rows.T, None)
    assert values.shape == (3,)
    assert transform.shape == (3, 4)
    assert values[-1] > SMALLEST_EIGENVALUE * values[0]


@pytest.mark.parametrize("count", [0, 3])
def test_of_nothing_there_are_no_eigenpairs(count):
    values, transform = eigenpairs_of_factor(torch.zeros(count, count, dtype=torch.float64), None)
    assert values.shape == (0,)
    assert transform.shape == (0, count)
