"""Consumers that gather the second moments that kfac and ekfac are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bayesrm_fast.fit.sums import Sums
from bayesrm_fast.ops import kron_project
from bayesrm_fast.posterior.linear_algebra import by_columns
from bayesrm_fast.sites import Site

LARGEST_FULL_MOMENT = 1024
"""Up to this size a second moment is kept whole; beyond it a sketch is, unless full rank was asked for."""

BLOCK = 128
"""Columns of a block of a second moment."""

OVERSAMPLING = 16
"""Columns that a sketch of a second moment has beyond the wanted rank."""


@dataclass(frozen=True)
class Eigenbasis:
    """The leading eigenvectors of a second moment.

    Attributes:
        vectors: orthonormal columns `[d, k]`.
        values: eigenvalues `[k]`, descending, never negative.
        tail: mean of the remaining d − k eigenvalues, exact from the trace.
    """

    vectors: Tensor
    values: Tensor
    tail: Tensor


class SecondMoment(Sums):
    """`Σ x xᵀ` over token vectors of size d, whole or as a one-pass Nyström sketch, with its exact trace.

    Sums are held in float64.

    Args:
        size: d.
        rank: eigenvectors that will be asked for; None for all.
        device: where the sums live.

    Attributes:
        tokens: how many were added `[]`.
    """

    def __init__(self, size: int, rank: int | None, device: torch.device) -> None:
        columns = size if rank is None else rank + OVERSAMPLING
        self.omega: Tensor | None = None
        if size > LARGEST_FULL_MOMENT and columns < size:
            self.omega = _test_matrix(size, columns, device)
        self.total = torch.zeros(size, columns if self.omega is not None else size, dtype=torch.float64, device=device)
        self._sketched_trace, self.tokens = torch.zeros(2, dtype=torch.float64, device=device)

    @property
    def trace(self) -> Tensor:
        """`Σ ‖x‖²`."""
        return self.total.trace() if self.omega is None else self._sketched_trace

    def add(self, x: Tensor) -> None:  # shape: (T, d)
        """Add the tokens of a batch.

        Products are formed in float32 (float64 if x is) and added in float64, so that the sum depends on the order of
        the batches by no more than one product's rounding.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        self.tokens += len(x)
        if self.omega is None:
            _add_products(x, self.total)
        else:
            self.total += x.T @ (x @ self.omega.to(x.dtype))
            # Row by row in x's own dtype: a sum in float64 over all would make a float64 copy of x first.
            self._sketched_trace += torch.linalg.vecdot(x, x).sum(dtype=torch.float64)

    def sums(self) -> list[Tensor]:
        """See `Sums`."""
        return [self.total, self._sketched_trace, self.tokens]

    def eigenbasis(self, rank: int | None) -> Eigenbasis:
        """The leading `rank` eigenpairs (all for None), float64."""
        size = self.total.shape[0]
        rank = size if rank is None else min(rank, size)
        values, vectors = self._eigenpairs()
        values, vectors = values[:rank].clamp(min=0), by_columns(vectors[:, :rank])
        left = (self.trace - values.sum()).clamp(min=0)
        return Eigenbasis(vectors, values, left / (size - rank) if rank < size else torch.zeros_like(left))

    def _eigenpairs(self) -> tuple[Tensor, Tensor]:
        if self.omega is None:
            values, vectors = torch.linalg.eigh(self.total)
            return values.flip(0), vectors.flip(1)
        # Tropp, Yurtsever, Udell, Cevher, "Fixed-rank approximation of a positive-semidefinite matrix from streaming
        # data" (2017), algorithm 3: a shift keeps the Cholesky factor stable and is taken off again.
        shift = torch.finfo(self.total.dtype).eps * max(float(torch.linalg.matrix_norm(self.total)), 1e-300)
        shifted = self.total + shift * self.omega
        core = self.omega.T @ shifted
        factor, failed = torch.linalg.cholesky_ex((core + core.T) / 2)
        if failed:  # numerically rank deficient: the same factor from eigenvalues, null directions left out
            core_values, core_vectors = torch.linalg.eigh((core + core.T) / 2)
            keep = core_values > core_values[-1].clamp(min=1e-300) * 1e-12
            root = torch.zeros_like(core_values)
            root[keep] = core_values[keep].rsqrt()
            half = shifted @ (core_vectors * root)
        else:
            half = torch.linalg.solve_triangular(factor, shifted.T, upper=False).T
        orthonormal, small = torch.linalg.qr(half)  # a GPU takes seconds over the SVD of a tall matrix
        vectors, singular, _ = torch.linalg.svd(small)
        return singular.square() - shift, orthonormal @ vectors


@cache
def _test_matrix(size: int, columns: int, device: torch.device) -> Tensor:
    """Orthonormal columns `[size, columns]`, seeded by the shape alone: every shard sketches with the same ones."""
    generator = torch.Generator().manual_seed(size * 65537 + columns)
    gaussian = torch.randn(size, columns, generator=generator, dtype=torch.float64, device="cpu")
    columns_of_q: Tensor = torch.linalg.qr(gaussian).Q
    return columns_of_q.contiguous().to(device)


def _add_products(x: Tensor, total: Tensor) -> None:  # shapes: (T, d), (d, d)
    """Add `XᵀX`, which is symmetric: what lies under its diagonal blocks is copied and not computed again."""
    for start in range(0, x.shape[1], BLOCK):
        stop = min(start + BLOCK, x.shape[1])
        upper = x[:, :stop].T @ x[:, start:stop]
        total[:stop, start:stop] += upper
        total[start:stop, :start] += upper[:start].T


class KroneckerMoments(Sums):
    """Consumer of the first pass: every site's two KFAC-expand factors.

    The side that holds activations is a mean over tokens and the side that holds cotangents a sum (KFAC-expand:
    Eschenhagen et al., arXiv 2311.00636; docs/maths.md, section 2). The loss curvature is in the cotangents.

    Args:
        sites: what the posterior is over.
        input_owner: for each site whose large side holds activations, the site whose input it shares (itself where
            none is); the moment of a shared input is gathered once.
        rank: eigenvectors of the large side that will be asked for; None for all.
        device: where the sums live.
    """

    gradients_alone = False

    def __init__(
        self, sites: Sequence[Site], input_owner: Mapping[str, str], rank: int | None, device: torch.device
    ) -> None:
        self.sites = list(sites)
        self.input_owner = dict(input_owner)
        self.small = {site.name: SecondMoment(site.r, None, device) for site in sites}
        self.large = {
            site.name: SecondMoment(site.d, rank, device) for site in sites if self.large_owner(site.name) == site.name
        }

    def large_owner(self, name: str) -> str:
        """The site under whose name the large factor of `name` is gathered."""
        return self.input_owner.get(name, name)

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Add a batch's tokens."""
        self.small[site.name].add(p)
        if site.name in self.large:
            self.large[site.name].add(q)

    def sums(self) -> list[Tensor]:
        """See `Sums`."""
        return [total for moment in (*self.small.values(), *self.large.values()) for total in moment.sums()]


class EigenvalueCorrection(Sums):
    """Consumer of the second pass: second moments of the pairs' gradients in fixed Kronecker bases.

    `E_ij = Σ_pairs Λ (VᵀGU)²_ij`, and for the part of row i outside the basis the mean over its d − k directions
    (George et al., arXiv 1806.03884, with the exact tail of docs/maths.md, section 2).

    Args:
        bases: `(V [r, r], U [d, k])` of each site.
    """

    gradients_alone = True

    def __init__(self, bases: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self.bases = dict(bases)
        self.inside = {
            name: torch.zeros(v.shape[0], u.shape[1], dtype=torch.float64, device=v.device)
            for name, (v, u) in bases.items()
        }
        self.outside = {
            name: torch.zeros(v.shape[0], dtype=torch.float64, device=v.device) for name, (v, _) in bases.items()
        }

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Add a batch's pairs."""
        coordinates, outside = kron_project(p, q, offsets, *self.bases[site.name])
        self.inside[site.name] += coordinates.square().sum(0, dtype=torch.float64)
        self.outside[site.name] += outside.sum(0, dtype=torch.float64)

    def sums(self) -> list[Tensor]:
        """See `Sums`."""
        return [*self.inside.values(), *self.outside.values()]
