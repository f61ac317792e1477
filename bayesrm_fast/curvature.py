"""Consumers that gather a posterior's curvature over the preference pairs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.ops import kron_project, second_moment, segment_outer
from bayesrm_fast.sites import Site

LARGEST_FULL_MOMENT = 1024
"""Up to this size a second moment is kept whole; beyond it a sketch is, unless full rank was asked for."""

OVERSAMPLING = 16
"""Columns that a sketch of a second moment has beyond the wanted rank."""

GGN_OVERSAMPLING = 32
"""Likewise for the whole GGN, whose spectrum falls slowly."""


SMALLEST_EIGENVALUE = 1e-12
"""Of the largest: below it, an eigenvalue of a Gram matrix in float64 is its rounding."""


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

    Of few pairs (`keeps_every_pair`) it keeps the gradients `√Λ j` themselves, and the result is exact; of more it
    keeps a Nyström sketch `Y = Σ g (gᵀΩ)`. Both are sums over pairs: shards add up with `merge`.

    A batch's products `gᵀΩ` run over all sites, so that its gradients are kept until the last site has come.

    Args:
        sites: what the posterior is over.
        rank: eigenpairs that will be asked for; None for as many as there are pairs.
        pairs: how many pairs will come, over all shards.
        device: where the sums live.
        dtype: of the gradients, and of the sums.
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
        self.is_exact = keeps_every_pair(rank, pairs)
        self.omega: dict[str, Tensor] = {}
        self.total: dict[str, Tensor] = {}
        if not self.is_exact:
            assert rank is not None
            columns = sketch_columns(rank, sites)
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
        products = torch.stack([batch[name] @ rows.T for name, rows in self.omega.items()]).sum(0)
        for name, total in self.total.items():
            total += products.T @ batch[name]

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

        Raises:
            InputError: a site that no backward pass has reached, so that no batch was ever whole.
        """
        if self._batch:
            absent = [site.name for site in self.sites if site.name not in self._batch]
            raise InputError(f"cannot serve weights that the reward does not depend on: {', '.join(absent[:8])}")
        scale, shift = (None, 0.0) if self.is_exact else self._nystrom_scale()
        values, rotation = eigenpairs_of_factor(gram(self._factor_rows(site, shift) for site in self.sites), scale)
        values, rotation = values[:rank], rotation[:rank]
        found = {}
        for site in self.sites:
            rows = self._factor_rows(site, shift)
            found[site.name] = rotation.to(rows.dtype) @ rows
        return found, (values - shift).clamp(min=0)

    def _factor_rows(self, site: Site, shift: float) -> Tensor:  # shape: (M, r · d)
        """One site's rows of what is kept, made when they are needed: all of them would be as much again."""
        if self.is_exact:
            return torch.cat([batch[site.name] for batch in self._kept])
        return self.total[site.name] + shift * self.omega[site.name]

    def _nystrom_scale(self) -> tuple[Tensor, float]:
        """What makes the shifted sums a factor F of `FᵀF = Y (ΩᵀY)⁻¹ Yᵀ`, and the shift.

        The shift is what the sums' rounding may have done; it is taken off the eigenvalues again, as in `SecondMoment`.
        """
        sums = list(self.total.values())
        shift = torch.finfo(sums[0].dtype).eps * max(float(gram(sums).trace()) ** 0.5, 1e-300)
        parts = [self.omega[s.name].double() @ self._factor_rows(s, shift).double().T for s in self.sites]
        core = torch.stack(parts).sum(0)
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        kept = values > shift / 2
        return (vectors[:, kept] / values[kept].sqrt()).T, shift


def keeps_every_pair(rank: int | None, pairs: int) -> bool:
    """Whether a ggn fit keeps the pairs' own gradients, which are no more than a sketch's vectors; it is exact then."""
    return rank is None or pairs <= rank + GGN_OVERSAMPLING


def sketch_columns(rank: int, sites: Sequence[Site]) -> int:
    """M, the columns of a ggn fit's sketch: the rank and a margin, and no more than there are weights."""
    return min(rank + GGN_OVERSAMPLING, sum(site.r * site.d for site in sites))


def gram(parts: Iterable[Tensor]) -> Tensor:  # shape of each: (M, …); result: (M, M)
    """`B Bᵀ` of rows that come in parts, float64."""
    products = [(flat := part.flatten(1).double()) @ flat.T for part in parts]
    return torch.stack(products).sum(0)


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


def _orthonormal_rows(
    sites: Sequence[Site], columns: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A random matrix `[M, r · d]` for each site, with orthonormal rows over all of them; the same in every shard."""
    generator = torch.Generator().manual_seed(columns)
    rows = {
        site.name: torch.randn(columns, site.r * site.d, generator=generator, dtype=torch.float32).to(device, dtype)
        for site in sites
    }
    factor = torch.linalg.cholesky(gram(rows.values()))
    mixing = torch.linalg.inv(factor).to(dtype)
    return {name: mixing @ block for name, block in rows.items()}
