"""The posterior whose GGN is its leading eigenpairs over all sites together, with the prior outside of them: ggn."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bayesrm_fast.ops import segment_outer
from bayesrm_fast.ops.checks import result_dtype
from bayesrm_fast.posterior.base import FitRecord, Posterior, PriorChoice
from bayesrm_fast.posterior.linear_algebra import eigenpairs_of_factor, random_signs
from bayesrm_fast.posterior.stored_basis import StoredBasis
from bayesrm_fast.sites import Site

ROUNDING = 1e-2
"""Of an eigenvector's squared norm: those of the smallest eigenvalues that are kept err by 10⁻⁴."""


class GgnPosterior(Posterior):
    """Gaussian posterior whose GGN is `Σ_k s_k e_k e_kᵀ`, `e = T B` with B the stored bases of all sites side by side.

    B may be rounded, to bfloat16 or int8: T makes its rows orthonormal, whatever they are (docs/maths.md, section 7).

    Args:
        sites: what it is over.
        bases: B of each site `[K, r, d]`.
        transform: T `[K', K]`, float64.
        eigenvalues: s `[K']`, float64, descending.
        record, prior, temperature: as for `Posterior`.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        bases: Mapping[str, StoredBasis],
        transform: Tensor,
        eigenvalues: Tensor,
        record: FitRecord,
        prior: PriorChoice | float,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(sites, record, prior, temperature)
        self.bases = dict(bases)
        self.transform = transform
        self.eigenvalues = eigenvalues

    @classmethod
    def from_factor(
        cls,
        sites: Sequence[Site],
        bases: Mapping[str, StoredBasis],
        scale: Tensor,
        record: FitRecord,
        prior: PriorChoice | float,
        temperature: float = 1.0,
    ) -> "GgnPosterior":
        """The posterior whose GGN is `FᵀF`, `F = scale B`.

        Args:
            sites: what it is over.
            bases: B of each site `[K, r, d]`.
            scale: `[K', K]`, float64.
            record, prior, temperature: as for `Posterior`.
        """
        eigenvalues, transform = eigenpairs_of_factor(
            torch.stack([basis.gram() for basis in bases.values()]).sum(0), scale
        )
        return cls(sites, bases, transform, eigenvalues, record, prior, temperature)

    def conditional(self, sites: Sequence[Site]) -> "GgnPosterior":
        """See `Posterior`; the GGN's block of some sites is the product of their part of its factor."""
        bases = {site.name: self.bases[site.name] for site in sites}
        scale = self.eigenvalues.sqrt()[:, None] * self.transform
        return self.from_factor(sites, bases, scale, self.record, self.prior, self.temperature)

    def spectrum(self) -> list[tuple[Tensor, int]]:
        """See `Posterior`."""
        return [(self.eigenvalues, 1)]

    def variance_consumer(self) -> "GgnVariance":
        """See `Posterior`."""
        return GgnVariance(self)

    def variance_curve_consumer(self, precisions: Sequence[float]) -> "GgnVarianceCurve":
        """See `Posterior`."""
        return GgnVarianceCurve(self, precisions)

    def feature_consumer(self) -> "GgnFeatures":
        """See `Posterior`."""
        return GgnFeatures(self)

    def tensors(self) -> dict[str, Tensor]:
        """See `Posterior`."""
        found = {"all/transform": self.transform, "all/eigenvalues": self.eigenvalues}
        for name, basis in self.bases.items():
            found |= basis.tensors(name)
        return found

    @classmethod
    def from_tensors(
        cls,
        sites: Sequence[Site],
        tensors: Mapping[str, Tensor],
        record: FitRecord,
        prior: PriorChoice,
        temperature: float,
    ) -> "GgnPosterior":
        """See `Posterior`."""
        bases = {site.name: StoredBasis.from_tensors(site.name, tensors) for site in sites}
        return cls(sites, bases, tensors["all/transform"], tensors["all/eigenvalues"], record, prior, temperature)

    def fault(self) -> str | None:
        """See `Posterior`; orthonormal by what the eigenvectors make of four random vectors."""
        if self.eigenvalues.dim() != 1 or self.transform.dim() != 2 or len(self.transform) != len(self.eigenvalues):
            shapes = f"{list(self.transform.shape)} and {list(self.eigenvalues.shape)}"
            return f"the transform and the eigenvalues do not fit each other, with shapes {shapes}"
        kept = self.transform.shape[1]
        for site in self.sites:
            fault = self.bases[site.name].fault((kept, site.r, site.d))
            if fault is not None:
                return f"basis of {site.name} {fault}"
        if bool((self.eigenvalues < 0).any()):
            return "the eigenvalues have numbers below zero"
        signs = random_signs(len(self.eigenvalues)).to(self.transform)
        inside = signs.T @ self.transform
        mapped = [basis.combined(inside) for basis in self.bases.values()]
        products = torch.stack([part @ part.T for part in mapped]).sum(0)
        if not (products - signs.T @ signs).abs().max() <= ROUNDING * max(len(signs), 1):
            return "the eigenvectors are not orthonormal"
        return None


class _Coordinates:
    """A consumer's sums `B J` and `‖J‖²` over the sites, in float64: `ops.ggn_project` has why."""

    gradients_alone = True

    def __init__(self, posterior: GgnPosterior) -> None:
        self.posterior = posterior
        self.dtype = torch.float32
        self._products: Tensor | None = None  # shape: (N, K)
        self._squared_norm: Tensor | None = None  # shape: (N,)

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Add one site's part."""
        self.dtype = result_dtype(p, q)
        products, squared_norm = self.posterior.bases[site.name].products(p, q, offsets)
        if self._products is None or self._squared_norm is None:
            self._products, self._squared_norm = products, squared_norm
        else:
            self._products += products
            self._squared_norm += squared_norm

    def coordinates(self) -> tuple[Tensor, Tensor]:  # shapes: (N, K'), (N,)
        """Coordinates in the eigenvectors, and the squared norm of what lies outside of them."""
        assert self._products is not None
        assert self._squared_norm is not None
        inside = self._products @ self.posterior.transform.T
        return inside, (self._squared_norm - inside.square().sum(1)).clamp(min=0)


class GgnVarianceCurve(_Coordinates):
    """`Σ_k c_k² / (s_k + λ) + (‖J‖² − Σ_k c_k²) / λ` of each segment, c its coordinates in the eigenvectors.

    Args:
        posterior: on the device of the pass.
        precisions: L values of λ.
    """

    def __init__(self, posterior: GgnPosterior, precisions: Sequence[float]) -> None:
        super().__init__(posterior)
        self.precisions = list(precisions)

    @property
    def variance(self) -> Tensor:
        """`[L, N]`; float32, float64 for a float64 model."""
        inside, outside = self.coordinates()
        precisions = torch.tensor(self.precisions, dtype=inside.dtype, device=inside.device)
        weights = 1 / (self.posterior.eigenvalues + precisions[:, None])  # shape: (L, K')
        return (weights @ inside.square().T + outside / precisions[:, None]).to(self.dtype)


class GgnVariance(GgnVarianceCurve):
    """The same at the posterior's own λ."""

    def __init__(self, posterior: GgnPosterior) -> None:
        super().__init__(posterior, [posterior.prior_precision])

    @property
    def variance(self) -> Tensor:
        """`[N]`; float32, float64 for a float64 model."""
        return super().variance[0]


class GgnFeatures(_Coordinates):
    """Keeps each segment's gradient until its coordinates are known, and then what lies outside of the eigenvectors.

    Args:
        posterior: on the device of the pass.
    """

    def __init__(self, posterior: GgnPosterior) -> None:
        super().__init__(posterior)
        self._gradients: dict[str, Tensor] = {}  # shape: (N, r · d) for each site

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Keep one site's gradients, and add its part."""
        self._gradients[site.name] = segment_outer(p, q, offsets).flatten(1)
        super().consume(site, p, q, offsets)

    def features(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `posterior.FeatureConsumer`; the gradients are used up."""
        posterior, precision = self.posterior, self.posterior.prior_precision
        inside, _ = self.coordinates()
        projection = inside @ posterior.transform  # shape: (N, K)
        outside = {}
        for name in list(self._gradients):
            gradient = self._gradients.pop(name)
            inside_here = posterior.bases[name].combined(projection)
            outside[name] = ((gradient.double() - inside_here) / precision**0.5).to(gradient.dtype)
        return {"all": inside / (posterior.eigenvalues + precision).sqrt()}, outside
