"""The consumer that gathers the whole GGN over all sites together."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.fit.sums import Sums
from bayesrm_fast.ops import segment_outer
from bayesrm_fast.posterior.linear_algebra import eigenpairs_of_factor, gram, inner_products
from bayesrm_fast.sites import Site

GGN_OVERSAMPLING = 32
"""Rows that a sketch of the GGN has beyond the wanted rank; its spectrum falls slowly."""


class GgnSketch(Sums):
    """Consumer of the whole GGN `Σ_pairs Λ j jᵀ` over all sites together, to give its leading eigenpairs.

    Of few pairs (`keeps_every_pair`) it keeps the gradients `√Λ j` themselves, and the result is exact; of more it
    keeps a Nyström sketch `Y = Σ g (gᵀΩ)`. Both are sums over pairs: in a shard, the gradients of others are zero.

    A batch's products `gᵀΩ` run over all sites, so that its gradients are kept until the last site has come.

    Args:
        sites: what the posterior is over.
        rank: eigenpairs that will be asked for; None for as many as there are pairs.
        pairs: how many pairs will come, over all shards.
        device: where the sums live.
        dtype: of the gradients, and of the sums.
        omega: test matrix of each site `[M, r · d]`; orthonormal random rows where it is not given.
        before: pairs of the shards before this one, whose gradients have the first rows.
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
        before: int = 0,
    ) -> None:
        self.sites = list(sites)
        self.is_exact = keeps_every_pair(rank, pairs)
        self.omega: dict[str, Tensor] = {}
        if self.is_exact:
            self.total = {s.name: torch.zeros(pairs, s.r * s.d, dtype=dtype, device=device) for s in sites}
        else:
            assert rank is not None
            columns = sketch_columns(rank, sites)
            self.omega = dict(omega) if omega is not None else _orthonormal_rows(sites, columns, device, dtype)
            self.total = {name: torch.zeros_like(rows) for name, rows in self.omega.items()}
        self._next_row = before
        self._batch: dict[str, Tensor] = {}

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Keep one site's gradients, and add the batch with the last of them."""
        self._batch[site.name] = segment_outer(p, q, offsets).flatten(1)
        if len(self._batch) < len(self.sites):
            return
        batch, self._batch = self._batch, {}
        if self.is_exact:
            first, self._next_row = self._next_row, self._next_row + len(batch[site.name])
            for name, rows in batch.items():
                # Several scalars a pair have more rows than there is room for; `rewards_in` refuses them afterwards.
                room = self.total[name][first : self._next_row]
                room.copy_(rows[: len(room)])
            return
        products = torch.stack([batch[name] @ rows.T for name, rows in self.omega.items()]).sum(0)
        for name, total in self.total.items():
            total += products.T @ batch[name]

    def sums(self) -> list[Tensor]:
        """See `Sums`."""
        return list(self.total.values())

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
            found[site.name] = self._rotated_rows(site, shift, rotation)
        return found, (values - shift).clamp(min=0)

    def _factor_rows(self, site: Site, shift: float) -> Tensor:  # shape: (M, r · d)
        """One site's rows of what is kept, made when they are needed: all of them would be as much again."""
        if self.is_exact:
            return self.total[site.name]
        return self.total[site.name].add(self.omega[site.name], alpha=shift)

    def _rotated_rows(self, site: Site, shift: float, rotation: Tensor) -> Tensor:  # shapes: (K, M) -> (K, r · d)
        if self.is_exact:
            rows = self._factor_rows(site, shift)
            return rotation.to(rows.dtype) @ rows
        total = self.total[site.name]
        rotated = rotation.to(total.dtype) @ total  # and then the rest, without the rows themselves
        return rotated.addmm_((shift * rotation).to(total.dtype), self.omega[site.name])

    def _nystrom_scale(self) -> tuple[Tensor, float]:
        """What makes the shifted sums a factor F of `FᵀF = Y (ΩᵀY)⁻¹ Yᵀ`, and the shift.

        The shift is what the sums' rounding may have done; it is taken off the eigenvalues again, as in `SecondMoment`.
        """
        sums = list(self.total.values())
        shift = torch.finfo(sums[0].dtype).eps * max(float(gram(sums).trace()) ** 0.5, 1e-300)
        core = inner_products((self.omega[s.name], self._factor_rows(s, shift)) for s in self.sites)
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        kept = values > shift / 2
        return (vectors[:, kept] / values[kept].sqrt()).T, shift


def keeps_every_pair(rank: int | None, pairs: int) -> bool:
    """Whether a ggn fit keeps the pairs' own gradients, which are no more than a sketch's vectors; it is exact then."""
    return rank is None or pairs <= rank + GGN_OVERSAMPLING


def sketch_columns(rank: int, sites: Sequence[Site]) -> int:
    """M, the columns of a ggn fit's sketch: the rank and a margin, and no more than there are weights."""
    return min(rank + GGN_OVERSAMPLING, sum(site.r * site.d for site in sites))


def _orthonormal_rows(
    sites: Sequence[Site], columns: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A random matrix `[M, r · d]` for each site, with orthonormal rows over all of them; the same in every shard."""
    generator = torch.Generator().manual_seed(columns)

    def gaussian(site: Site) -> Tensor:
        shape = (columns, site.r * site.d)
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(device, dtype)

    rows = {site.name: gaussian(site) for site in sites}
    factor = torch.linalg.cholesky(gram(rows.values()))
    mixing = torch.linalg.inv(factor).to(dtype)
    return {name: mixing @ block for name, block in rows.items()}
