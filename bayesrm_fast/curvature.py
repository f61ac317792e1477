"""Consumers that gather a posterior's curvature over the preference pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.ops import kron_project, second_moment, segment_outer
from bayesrm_fast.sites import Site

LARGEST_FULL_MOMENT = 1024
"""Up to this size a second moment is kept whole; beyond it a sketch is, unless full rank was asked for."""

OVERSAMPLING = 16
"""Columns that a sketch of a second moment has beyond the wanted rank."""

GGN_OVERSAMPLING = 32
"""Likewise for the whole GGN, whose spectrum falls slowly."""


SMALLEST_OF_A_GRAM = 1e-12
"""Of the largest eigenvalue of a Gram matrix in float64: what is smaller is rounding."""


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


class SecondMoment:
    """`Σ x xᵀ` over token vectors of size d, whole or as a one-pass Nyström sketch, with its exact trace.

    Both forms are sums over tokens: moments of shards of the data add up with `merge`. Sums are held in float64.

    Args:
        size: d.
        rank: eigenvectors that will be asked for; None for all.
        device: where the sums live.
    """

    def __init__(self, size: int, rank: int | None, device: torch.device) -> None:
        columns = size if rank is None else rank + OVERSAMPLING
        self.omega: Tensor | None = None
        if size > LARGEST_FULL_MOMENT and columns < size:
            # Seeded by the shape alone, so that every shard sketches with the same test matrix.
            generator = torch.Generator().manual_seed(size * 65537 + columns)
            gaussian = torch.randn(size, columns, generator=generator, dtype=torch.float64)
            self.omega = torch.linalg.qr(gaussian).Q.contiguous().to(device)
        self.total = torch.zeros(size, columns if self.omega is not None else size, dtype=torch.float64, device=device)
        self._sketched_trace = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def trace(self) -> Tensor:
        """`Σ ‖x‖²`."""
        return self.total.trace() if self.omega is None else self._sketched_trace

    def add(self, x: Tensor) -> None:  # shape: (T, d)
        """Add the tokens of a batch."""
        second_moment(x, self.total, self.omega)
        if self.omega is not None:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            # Row by row in x's own dtype: a sum in float64 over all would make a float64 copy of x first.
            self._sketched_trace += torch.linalg.vecdot(x, x).sum(dtype=torch.float64)

    def merge(self, other: "SecondMoment") -> None:
        """Add another shard's sums."""
        self.total += other.total.to(self.total.device)
        self._sketched_trace += other._sketched_trace.to(self.total.device)

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
        vectors, singular, _ = torch.linalg.svd(half, full_matrices=False)
        return singular.square() - shift, vectors


def by_columns(basis: Tensor) -> Tensor:  # shape: (d, k)
    """The same basis, laid out as the C++ operations read it, so that no call has to turn it."""
    return basis.T.contiguous().T


class KroneckerMoments:
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

    def __init__(
        self, sites: Sequence[Site], input_owner: Mapping[str, str], rank: int | None, device: torch.device
    ) -> None:
        self.sites = list(sites)
        self.input_owner = dict(input_owner)
        self.small = {site.name: SecondMoment(site.r, None, device) for site in sites}
        self.large = {
            site.name: SecondMoment(site.d, rank, device) for site in sites if self.large_owner(site.name) == site.name
        }
        self.tokens = {site.name: 0 for site in sites}

    def large_owner(self, name: str) -> str:
        """The site under whose name the large factor of `name` is gathered."""
        return self.input_owner.get(name, name)

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Add a batch's tokens."""
        self.small[site.name].add(p)
        self.tokens[site.name] += p.shape[0]
        if site.name in self.large:
            self.large[site.name].add(q)

    def merge(self, other: "KroneckerMoments") -> None:
        """Add another shard's sums."""
        for name, moment in other.small.items():
            self.small[name].merge(moment)
            self.tokens[name] += other.tokens[name]
        for name, moment in other.large.items():
            self.large[name].merge(moment)


class EigenvalueCorrection:
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

    def merge(self, other: "EigenvalueCorrection") -> None:
        """Add another shard's sums."""
        for name in self.inside:
            self.inside[name] += other.inside[name].to(self.inside[name].device)
            self.outside[name] += other.outside[name].to(self.outside[name].device)


class GgnSketch:
    """Consumer of the whole GGN `Σ_pairs Λ j jᵀ` over all sites together, to give its leading eigenpairs.

    Up to `rank + GGN_OVERSAMPLING` pairs it keeps the gradients `√Λ j` themselves, and the result is exact; of more it
    keeps a Nyström sketch `Y = Σ g (gᵀΩ)`. Both are sums over pairs: shards add up with `merge`.

    A batch's products `gᵀΩ` run over all sites, so that its gradients are kept until the last site has come.

    Args:
        sites: what the posterior is over.
        rank: eigenpairs that will be asked for; None for as many as there are pairs.
        pairs: how many pairs will come, over all shards.
        device: where the sums live.
        dtype: of the sums.
        omega: test matrix of each site `[M, r · d]`; orthonormal random rows where it is not given.
    """

    gradients_alone = True

    def __init__(
        self,
        sites: Sequence[Site],
        rank: int | None,
        pairs: int,
        device: torch.device,
        dtype: torch.dtype,
        omega: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.sites = list(sites)
        columns = ggn_columns(rank, pairs, sum(site.r * site.d for site in sites))
        self.is_exact = omega is None and pairs <= columns
        self.omega: dict[str, Tensor] = {}
        self.total: dict[str, Tensor] = {}
        if not self.is_exact:
            self.omega = dict(omega) if omega is not None else _orthonormal_rows(sites, columns, device, dtype)
            self.total = {name: torch.zeros_like(rows) for name, rows in self.omega.items()}
        self._kept: list[dict[str, Tensor]] = []
        self._batch: dict[str, Tensor] = {}

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Keep one site's gradients, and add the batch with the last of them."""
        self._batch[site.name] = segment_outer(p, q, offsets).flatten(1)
        if len(self._batch) < len(self.sites):
            return
        batch, self._batch = self._batch, {}
        if self.is_exact:
            self._kept.append(batch)
            return
        products = sum(batch[name] @ rows.to(batch[name].dtype).T for name, rows in self.omega.items())
        for name, total in self.total.items():
            total += (products.T @ batch[name]).to(total.dtype)  # type: ignore[union-attr]

    def merge(self, other: "GgnSketch") -> None:
        """Add another shard's sums."""
        self._kept += other._kept
        for name, total in other.total.items():
            self.total[name] += total.to(self.total[name])

    def eigenpairs(self, rank: int | None) -> tuple[dict[str, Tensor], Tensor]:
        """The leading `rank` eigenpairs (all that are known for None).

        Returns:
            For each site `[K, r · d]`, rows that are orthonormal over all sites together; and the eigenvalues `[K]`,
            float64, descending.
        """
        if self.is_exact:
            half = {s.name: torch.cat([batch[s.name] for batch in self._kept]) for s in self.sites}
            mixing = torch.eye(next(iter(half.values())).shape[0], dtype=torch.float64)
            mixing, shift = mixing.to(next(iter(half.values())).device), 0.0
        else:
            half, mixing, shift = self._nystrom_factor()
        # The GGN is FᵀF with F = mixing · half: its eigenvalues are those of the small FFᵀ, in float64.
        values, vectors = torch.linalg.eigh(mixing @ _row_products(half, half) @ mixing.T)
        kept = values > values[-1].clamp(min=torch.finfo(values.dtype).tiny) * SMALLEST_OF_A_GRAM
        values, vectors = values[kept].flip(0)[:rank], vectors[:, kept].flip(1)[:, :rank]
        rotation = (vectors / values.sqrt()).T @ mixing
        return {name: (rotation.to(rows.dtype) @ rows) for name, rows in half.items()}, (values - shift).clamp(min=0)

    def _nystrom_factor(self) -> tuple[dict[str, Tensor], Tensor, float]:
        """A factor of `Y (ΩᵀY)⁻¹ Yᵀ`, shifted as in `SecondMoment`, by what the sums' rounding may have done."""
        scale = float(_row_products(self.total, self.total).trace()) ** 0.5
        shift = torch.finfo(next(iter(self.total.values())).dtype).eps * max(scale, 1e-300)
        half = {name: total + shift * self.omega[name] for name, total in self.total.items()}
        core = _row_products(self.omega, half)
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        kept = values > shift / 2
        return half, (vectors[:, kept] / values[kept].sqrt()).T, shift


def ggn_columns(rank: int | None, pairs: int, size: int) -> int:
    """M, the vectors of the sites' size that `GgnSketch` keeps: the rank and a margin, at most all pairs or weights."""
    return min(pairs if rank is None else rank + GGN_OVERSAMPLING, max(size, 1))


def _row_products(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """`Σ_sites L Rᵀ`, float64."""
    return torch.stack([rows.double() @ right[name].double().T for name, rows in left.items()]).sum(0)


def _orthonormal_rows(
    sites: Sequence[Site], columns: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A random matrix `[M, r · d]` for each site, with orthonormal rows over all of them; the same in every shard."""
    generator = torch.Generator().manual_seed(columns)
    rows = {
        site.name: torch.randn(columns, site.r * site.d, generator=generator, dtype=torch.float32).to(device, dtype)
        for site in sites
    }
    factor = torch.linalg.cholesky(_row_products(rows, rows))
    mixing = torch.linalg.inv(factor).to(dtype)
    return {name: mixing @ block for name, block in rows.items()}
