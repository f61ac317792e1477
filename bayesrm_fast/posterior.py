"""The fitted posterior: variances, covariances, evidence, and the two files that hold it."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from bayesrm_fast.curvature import EigenvalueCorrection, KroneckerMoments, by_columns
from bayesrm_fast.errors import InputError
from bayesrm_fast.ops import kron_variance, segment_outer
from bayesrm_fast.sites import Site

TENSORS_FILE = "posterior.safetensors"
RECORD_FILE = "posterior.json"
FORMAT = 1


@dataclass(frozen=True)
class FitRecord:
    """What a posterior was fitted on and how; the readable half of a saved posterior.

    Attributes:
        structure: "kfac" or "ekfac".
        rank: eigenvectors kept of each large side; None for all.
        pairs: number of preference pairs.
        log_likelihood: `Σ log σ(r_chosen − r_rejected)` of the fitted pairs.
        squared_norm: `‖θ‖²` of the weights that the posterior is over.
        base_model: name or path of the model under the adapter.
        adapter_sha256: hash of the adapter's and the head's weights.
        include_head: whether the score head is part of the posterior.
        output_weights: weight of each output in the reward.
        max_length: tokens at which rows were cut.
        versions: of the libraries that fitted it.
        prior: how the prior precision was chosen: `method`, and for a search the `curve` of `[λ, criterion]` and what
            the `criterion` is.
    """

    structure: str
    rank: int | None
    pairs: int
    log_likelihood: float
    squared_norm: float
    base_model: str
    adapter_sha256: str
    include_head: bool
    output_weights: list[float]
    max_length: int
    versions: dict[str, str]
    prior: dict[str, Any] = field(default_factory=dict)


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


class KroneckerPosterior:
    """Gaussian posterior `N(θ, (GGN + λI)⁻¹)` whose GGN is one Kronecker eigenbasis per site.

    Args:
        sites: what it is over.
        blocks: a block for each site, by name. Sites that share an input share the tensor `basis_q`.
        prior_precision: λ.
        record: what it was fitted on.
    """

    def __init__(
        self, sites: Sequence[Site], blocks: Mapping[str, KroneckerBlock], prior_precision: float, record: FitRecord
    ) -> None:
        self.sites = list(sites)
        self.blocks = dict(blocks)
        self.record = record
        self.prior_precision = prior_precision

    @property
    def prior_precision(self) -> float:
        """λ; setting it changes every variance and needs no new fit."""
        return self._prior_precision

    @prior_precision.setter
    def prior_precision(self, value: float) -> None:
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"the prior precision must be a positive number, not {value}")
        self._prior_precision = float(value)

    @property
    def parameters(self) -> int:
        """P, the number of weights that the posterior is over."""
        return sum(site.r * site.d for site in self.sites)

    def weights(self, name: str, prior_precision: float | None = None) -> tuple[Tensor, Tensor]:  # (r, k), (r,)
        """Posterior variances `1 / (E + λ)` of a site's coordinates inside its basis, and of each row outside it."""
        precision = self.prior_precision if prior_precision is None else prior_precision
        block = self.blocks[name]
        return 1 / (block.eigenvalues + precision), 1 / (block.tail + precision)

    def conditional(self, sites: Sequence[Site]) -> "KroneckerPosterior":
        """The posterior of some sites' weights where all others are held at the MAP.

        Its variances `J₁ᵀ (GGN₁₁ + λI)⁻¹ J₁` are the least that `JᵀΣJ` can be, whatever the other sites' part of J is
        (docs/maths.md, section 6); here sites are independent, so that they are the sites' own parts of the sum.
        """
        blocks = {site.name: self.blocks[site.name] for site in sites}
        return KroneckerPosterior(sites, blocks, self.prior_precision, self.record)

    def _sum_over_eigenvalues(self, function: Any) -> float:
        total = 0.0
        for block in self.blocks.values():
            total += float(function(block.eigenvalues.double()).sum())
            total += block.outside * float(function(block.tail.double()).sum())
        return total

    def log_determinant(self, prior_precision: float | None = None) -> float:
        """`log det(GGN + λI)`."""
        precision = self.prior_precision if prior_precision is None else prior_precision
        return self._sum_over_eigenvalues(lambda values: (values + precision).log())

    def effective_parameters(self, prior_precision: float | None = None) -> float:
        """`Σ E / (E + λ)`, how many directions the data determines (MacKay, 1992)."""
        precision = self.prior_precision if prior_precision is None else prior_precision
        return self._sum_over_eigenvalues(lambda values: values / (values + precision))

    def log_evidence(self, prior_precision: float | None = None) -> float:
        """`log p(D|θ) − ½λ‖θ‖² + ½P log λ − ½ log det(GGN + λI)`, the Laplace evidence in nats."""
        precision = self.prior_precision if prior_precision is None else prior_precision
        return (
            self.record.log_likelihood
            - 0.5 * precision * self.record.squared_norm
            + 0.5 * self.parameters * math.log(precision)
            - 0.5 * self.log_determinant(precision)
        )

    def to(self, device: torch.device | str) -> "KroneckerPosterior":
        """The same posterior with its tensors on `device`."""
        moved: dict[int, Tensor] = {}

        def move(tensor: Tensor) -> Tensor:
            return moved.setdefault(id(tensor), tensor.to(device))

        blocks = {
            name: KroneckerBlock(move(b.basis_p), move(b.basis_q), move(b.eigenvalues), move(b.tail))
            for name, b in self.blocks.items()
        }
        return KroneckerPosterior(self.sites, blocks, self.prior_precision, self.record)

    def save(self, folder: Path) -> None:
        """Write `posterior.safetensors` and `posterior.json` into an existing folder.

        Each file is complete or absent. The record is written last and names the tensors' hash, so that files of two
        fits are never taken for one.
        """
        tensors: dict[str, Tensor] = {}
        owners: dict[int, str] = {}
        shared: dict[str, str] = {}
        for name, block in self.blocks.items():
            owner = owners.setdefault(id(block.basis_q), name)
            if owner == name:
                tensors[f"{name}/basis_q"] = block.basis_q
            else:
                shared[name] = owner
            for part in ("basis_p", "eigenvalues", "tail"):
                tensors[f"{name}/{part}"] = getattr(block, part)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = safetensors.torch.save(tensors, metadata={"format": "pt"})
        record = {
            "format": FORMAT,
            "prior_precision": self.prior_precision,
            "log_evidence": self.log_evidence(),
            "effective_parameters": self.effective_parameters(),
            "parameters": self.parameters,
            **asdict(self.record),
            "sites": [asdict(site) for site in self.sites],
            "shared_inputs": shared,
            "tensors_sha256": hashlib.sha256(content).hexdigest(),
        }
        write_whole(folder / TENSORS_FILE, content)
        write_whole(folder / RECORD_FILE, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> "KroneckerPosterior":
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing, broken, of another fit or of another format.
        """
        record = read_record(folder)
        try:
            content = (folder / TENSORS_FILE).read_bytes()
        except OSError as error:
            raise InputError(f"{folder / TENSORS_FILE} cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != record["tensors_sha256"]:
            raise InputError(f"{folder / TENSORS_FILE} is truncated or belongs to another {RECORD_FILE}")
        try:
            tensors = {
                name: by_columns(tensor) if name.endswith("/basis_q") else tensor
                for name, tensor in safetensors.torch.load(content).items()
            }
            sites = [Site(**site) for site in record["sites"]]
            shared = record["shared_inputs"]
            blocks = {}
            for site in sites:
                block = KroneckerBlock(
                    basis_p=tensors[f"{site.name}/basis_p"],
                    basis_q=tensors[f"{shared.get(site.name, site.name)}/basis_q"],
                    eigenvalues=tensors[f"{site.name}/eigenvalues"],
                    tail=tensors[f"{site.name}/tail"],
                )
                wrong = [name for name, value in vars(block).items() if not value.isfinite().all()]
                if wrong:
                    raise InputError(f"{folder / TENSORS_FILE}: {wrong[0]} of {site.name} is NaN or infinite")
                blocks[site.name] = block
            fit = FitRecord(**{name: record[name] for name in FitRecord.__dataclass_fields__})
            return cls(sites, blocks, record["prior_precision"], fit)
        except (SafetensorError, KeyError, TypeError) as error:
            raise InputError(f"{folder} holds no readable posterior: {error}") from error


def read_record(folder: Path) -> dict[str, Any]:
    """The readable half of a saved posterior.

    Raises:
        InputError: the file is missing, is no JSON object, or is of another format.
    """
    path = folder / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or "tensors_sha256" not in record:
        raise InputError(f"{path} is not a posterior of format {FORMAT}")
    return record


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes the file `path`, so that it is never seen half-written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half-written."""
    with written_whole(path) as beside:
        beside.write_bytes(content)


def kfac_blocks(moments: KroneckerMoments, rank: int | None, dtype: torch.dtype) -> dict[str, KroneckerBlock]:
    """Blocks `P ⊗ Q`: `E_ij = γ_i μ_j`, and outside the basis γ_i times the mean of the μ left out."""
    large = {name: moment.eigenbasis(rank) for name, moment in moments.large.items()}
    bases = {name: basis.vectors.to(dtype) for name, basis in large.items()}
    blocks = {}
    for site in moments.sites:
        owner = moments.large_owner(site.name)
        small = moments.small[site.name].eigenbasis(None)
        gamma = small.values / max(moments.tokens[site.name], 1)
        blocks[site.name] = KroneckerBlock(
            basis_p=small.vectors.to(dtype),
            basis_q=bases[owner],
            eigenvalues=torch.outer(gamma, large[owner].values).to(dtype),
            tail=(gamma * large[owner].tail).to(dtype),
        )
    return blocks


def ekfac_blocks(blocks: Mapping[str, KroneckerBlock], measured: EigenvalueCorrection) -> dict[str, KroneckerBlock]:
    """The same bases with measured eigenvalues."""
    return {
        name: KroneckerBlock(
            basis_p=block.basis_p,
            basis_q=block.basis_q,
            eigenvalues=measured.inside[name].to(block.eigenvalues.dtype),
            tail=(measured.outside[name] / max(block.outside, 1)).to(block.tail.dtype),
        )
        for name, block in blocks.items()
    }


class VarianceConsumer:
    """Adds up `JᵀΣJ` of each segment over the sites.

    Args:
        posterior: on the device of the pass.
        segments: N.
    """

    gradients_alone = True

    def __init__(self, posterior: KroneckerPosterior, segments: int) -> None:
        self.posterior = posterior
        self.variance = torch.zeros(segments)  # shape: (N,)

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Add one site's part."""
        block = self.posterior.blocks[site.name]
        weight, residual = self.posterior.weights(site.name)
        part = kron_variance(p, q, offsets, block.basis_p, block.basis_q, weight, residual)
        self.variance = self.variance.to(part) + part


class FeatureConsumer:
    """Keeps each segment's whitened gradient `Σ^½ J`, whose inner products are the covariances.

    The features of N segments take N times as many numbers as the posterior has weights.

    Args:
        posterior: on the device of the pass.
    """

    gradients_alone = True

    def __init__(self, posterior: KroneckerPosterior) -> None:
        self.posterior = posterior
        self.features: dict[str, Tensor] = {}  # shape: (N, r · d) for each site

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Keep one site's features."""
        block = self.posterior.blocks[site.name]
        weight, residual = self.posterior.weights(site.name)
        gradient = segment_outer(p, q, offsets)
        basis_p, basis_q = block.basis_p.to(gradient.dtype), block.basis_q.to(gradient.dtype)
        rotated = basis_p.T @ gradient
        coordinates = rotated @ basis_q
        outside = rotated - coordinates @ basis_q.T
        whitened = outside * residual.sqrt()[:, None] + (coordinates * weight.sqrt()) @ basis_q.T
        self.features[site.name] = whitened.flatten(1)
