"""Eigenpairs of matrices that are only known by their factors, and how bases lie in memory."""

from collections.abc import Iterable

import torch
from torch import Tensor

SMALLEST_EIGENVALUE = 1e-12
"""Of the largest: below it, an eigenvalue of a Gram matrix in float64 is its rounding."""


COLUMNS = 1024
"""Of a block that is copied to float64 at a time."""


def by_columns(basis: Tensor) -> Tensor:  # shape: (d, k)
    """The same basis, laid out as the C++ operations read it, so that no call has to turn it."""
    return basis.T.contiguous().T


def is_orthonormal(basis: Tensor) -> bool:  # shape: (d, k)
    """Whether columns are, by what they make of four random vectors: as cheap as reading them.

    Of k columns in d dimensions, each inner product of two errs by at most d roundings, and each entry of the result
    is a sum of k² of them with random signs.
    """
    d, k = basis.shape
    signs = random_signs(k).to(basis)
    mapped = (basis @ signs).double()
    error = (mapped.T @ mapped - (signs.T @ signs).double()).abs().max()
    return bool(error <= 4 * d * k * torch.finfo(basis.dtype).eps)


def random_signs(count: int) -> Tensor:  # shape: (count, 4)
    """Vectors of ±1, the same ones every time."""
    seeded = torch.Generator("cpu").manual_seed(0)
    return torch.randint(0, 2, (count, 4), generator=seeded, dtype=torch.float64, device="cpu") * 2 - 1


def gram(parts: Iterable[Tensor]) -> Tensor:  # shape of each: (M, …); result: (M, M)
    """`B Bᵀ` of rows that come in parts, float64."""
    return inner_products((part, part) for part in parts)


def inner_products(parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:  # shapes of each: (M, …), (K, …); result: (M, K)
    """`A Bᵀ` of rows that come in parts, at least one, float64; no more than a few columns are copied to it."""
    total: Tensor | None = None
    for a, b in parts:
        blocks = (rows.flatten(1).split(COLUMNS, 1) for rows in (a, b))
        for left, right in zip(*blocks, strict=True):
            product = left.double() @ right.double().T
            total = product if total is None else total.add_(product)
    assert total is not None
    return total


def eigenpairs_of_factor(products: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Eigenpairs of `FᵀF`, `F = scale B`, from the small `B Bᵀ`.

    Args:
        products: `B Bᵀ` `[M, M]`, float64.
        scale: `[K, M]`, float64; the identity for None.

    Returns:
        The eigenvalues that are not rounding `[K']`, descending, and T `[K', M]`: the rows of `T B` are their vectors.
    """
    if scale is None:
        scale = torch.eye(len(products), dtype=products.dtype, device=products.device)
    values, vectors = torch.linalg.eigh(scale @ products @ scale.T)
    largest = values[-1:].clamp(min=torch.finfo(values.dtype).tiny).sum()  # of none, where the GGN is zero
    kept = values > SMALLEST_EIGENVALUE * largest
    values, vectors = values[kept].flip(0), vectors[:, kept].flip(1)
    return values, (vectors / values.sqrt()).T @ scale
