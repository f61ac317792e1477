"""Posteriors whose GGN has one block per site, each in a Kronecker eigenbasis: kfac and ekfac."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.ops import kron_project, kron_variance, segment_outer
from bayesrm_fast.posterior.base import FitRecord, Posterior, PriorChoice
from bayesrm_fast.posterior.linear_algebra import by_columns, is_orthonormal
from bayesrm_fast.sites import Site


@dataclass(frozen=True)
class KroneckerBlock:
    """The GGN's block of one site in its Kronecker eigenbasis.

    Attributes:
        basis_p: V `[r, r]`.
        basis_q: U `[d, k]`.
        eigenvalues: E `[r, k]`.
        tail: e `[r]`, the eigenvalue of row i in every direction outside span(U).
    """

    basis_p: Tensor
    basis_q: Tensor
    eigenvalues: Tensor
    tail: Tensor

    @property
    def outside(self) -> int:
        """d − k, directions of a row outside the basis."""
        return self.basis_q.shape[0] - self.basis_q.shape[1]


class KroneckerPosterior(Posterior):
    """Gaussian posterior whose GGN is one Kronecker eigenbasis per site.

    Args:
        sites: what it is over.
        blocks: a block for each site, by name. Sites that share an input share the tensor `basis_q`.
        record, prior, temperature: as for `Posterior`.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        blocks: Mapping[str, KroneckerBlock],
        record: FitRecord,
        prior: PriorChoice | float,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(sites, record, prior, temperature)
        self.blocks = dict(blocks)

    def weights(self, name: str, prior_precision: float | None = None) -> tuple[Tensor, Tensor]:  # (r, k), (r,)
        """Posterior variances `1 / (E + λ)` of a site's coordinates inside its basis, and of each row outside it."""
        precision = self.prior_precision if prior_precision is None else prior_precision
        block = self.blocks[name]
        return 1 / (block.eigenvalues + precision), 1 / (block.tail + precision)

    def conditional(self, sites: Sequence[Site]) -> "KroneckerPosterior":
        """See `Posterior`; sites are independent here, so that these are the sites' own blocks."""
        blocks = {site.name: self.blocks[site.name] for site in sites}
        return KroneckerPosterior(sites, blocks, self.record, self.prior, self.temperature)

    def spectrum(self) -> list[tuple[Tensor, int]]:
        """See `Posterior`."""
        inside = [(block.eigenvalues.double(), 1) for block in self.blocks.values()]
        return inside + [(block.tail.double(), block.outside) for block in self.blocks.values()]

    def variance_consumer(self) -> "KroneckerVariance":
        """See `Posterior`."""
        return KroneckerVariance(self)

    def variance_curve_consumer(self, precisions: Sequence[float]) -> "KroneckerVarianceCurve":
        """See `Posterior`."""
        return KroneckerVarianceCurve(self, precisions)

    def feature_consumer(self) -> "KroneckerFeatures":
        """See `Posterior`."""
        return KroneckerFeatures(self)

    def tensors(self) -> dict[str, Tensor]:
        """See `Posterior`."""
        return {f"{name}/{part}": tensor for name, block in self.blocks.items() for part, tensor in vars(block).items()}

    @classmethod
    def from_tensors(
        cls,
        sites: Sequence[Site],
        tensors: Mapping[str, Tensor],
        record: FitRecord,
        prior: PriorChoice,
        temperature: float,
    ) -> "KroneckerPosterior":
        """See `Posterior`."""
        turned: dict[int, Tensor] = {}
        blocks = {}
        for site in sites:
            basis_q = tensors[f"{site.name}/basis_q"]
            blocks[site.name] = KroneckerBlock(
                basis_p=tensors[f"{site.name}/basis_p"],
                basis_q=turned.setdefault(id(basis_q), by_columns(basis_q)),
                eigenvalues=tensors[f"{site.name}/eigenvalues"],
                tail=tensors[f"{site.name}/tail"],
            )
        return cls(sites, blocks, record, prior, temperature)

    def fault(self) -> str | None:
        """See `Posterior`."""
        return next(filter(None, (_fault(site, self.blocks[site.name]) for site in self.sites)), None)


def _fault(site: Site, block: KroneckerBlock) -> str | None:
    k = block.eigenvalues.shape[-1]
    shapes = {"basis_p": (site.r, site.r), "basis_q": (site.d, k), "eigenvalues": (site.r, k), "tail": (site.r,)}
    for part, shape in shapes.items():
        if getattr(block, part).shape != shape:
            return f"{part} of {site.name} is {list(getattr(block, part).shape)}, not {list(shape)}"
    for part in ("eigenvalues", "tail"):
        if bool((getattr(block, part) < 0).any()):
            return f"{part} of {site.name} has numbers below zero"
    for part in ("basis_p", "basis_q"):
        if not is_orthonormal(getattr(block, part)):
            return f"{part} of {site.name} is not orthonormal"
    return None


class KroneckerVariance:
    """Adds up `JᵀΣJ` of each segment over the sites.

    Args:
        posterior: on the device of the pass.
    """

    gradients_alone = True

    def __init__(self, posterior: KroneckerPosterior) -> None:
        self.posterior = posterior
        self.variance = torch.zeros(1, dtype=torch.float32, device="cpu")  # shape: (N,) once there is a site

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Add one site's part."""
        block = self.posterior.blocks[site.name]
        weight, residual = self.posterior.weights(site.name)
        part = kron_variance(p, q, offsets, block.basis_p, block.basis_q, weight, residual)
        self.variance = self.variance.to(part) + part


class KroneckerVarianceCurve:
    """The variance of each segment at every λ of a list, from one pass.

    Args:
        posterior: on the device of the pass.
        precisions: L values of λ.
    """

    gradients_alone = True

    def __init__(self, posterior: KroneckerPosterior, precisions: Sequence[float]) -> None:
        self.posterior = posterior
        self.precisions = list(precisions)
        self.variance = torch.zeros(
            len(self.precisions), 1, dtype=torch.float32, device="cpu"
        )  # shape: (L, N) once there is a site

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Add one site's part."""
        block = self.posterior.blocks[site.name]
        coordinates, outside = kron_project(p, q, offsets, block.basis_p, block.basis_q)
        parts = []
        for precision in self.precisions:
            weight, residual = self.posterior.weights(site.name, precision)
            parts.append((coordinates.square() * weight).sum((-2, -1)) + outside @ residual)
        part = torch.stack(parts)
        self.variance = self.variance.to(part) + part


class KroneckerFeatures:
    """Keeps each segment's whitened gradient `Σ^½ J`.

    Args:
        posterior: on the device of the pass.
    """

    gradients_alone = True

    def __init__(self, posterior: KroneckerPosterior) -> None:
        self.posterior = posterior
        self.inside: dict[str, Tensor] = {}  # shape: (N, r · k) for each site
        self.outside: dict[str, Tensor] = {}  # shape: (N, r · d) for each site

    def features(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `posterior.FeatureConsumer`."""
        return self.inside, self.outside

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Keep one site's features."""
        block = self.posterior.blocks[site.name]
        weight, residual = self.posterior.weights(site.name)
        gradient = segment_outer(p, q, offsets)
        basis_p, basis_q = block.basis_p.to(gradient.dtype), block.basis_q.to(gradient.dtype)
        rotated = basis_p.T @ gradient
        coordinates = rotated @ basis_q
        self.inside[site.name] = (coordinates * weight.sqrt()).flatten(1)
        if block.outside:
            outside = rotated - coordinates @ basis_q.T
            self.outside[site.name] = (outside * residual.sqrt()[:, None]).flatten(1)
