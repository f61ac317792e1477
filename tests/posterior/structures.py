"""Every structure of the posterior: how it is fitted from token vectors, and its GGN in float64, by numpy alone.

A new structure names itself in `STRUCTURES`, and has the whole battery of `test_family.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch

from bayesrm_fast.fit.kronecker import ekfac_blocks, kfac_blocks
from bayesrm_fast.fit.moments import EigenvalueCorrection, KroneckerMoments
from bayesrm_fast.fit.sketches import GgnSketch
from bayesrm_fast.posterior.base import FitRecord, PriorChoice
from bayesrm_fast.posterior.ggn import GgnPosterior
from bayesrm_fast.posterior.kronecker import KroneckerPosterior
from bayesrm_fast.posterior.stored_basis import StoredBasis
from bayesrm_fast.sites import Site

CPU = torch.device("cpu")
PRIOR = PriorChoice(0.5, "evidence", "log evidence")
TEMPERATURE = 1.5
RECORD = FitRecord("base", {"adapter weights": "abc"}, False, [1.0], 64, "", None, 0, -3.25, 7.5, {"torch": "1"})


@dataclass(frozen=True)
class Tokens:
    """What passes over some segments feed: `(p, q, offsets)` by site."""

    by_site: dict

    def __len__(self):
        return len(next(iter(self.by_site.values()))[2]) - 1

    def select(self, segments):
        """Those segments alone, in this order."""
        chosen = {}
        for name, (p, q, offsets) in self.by_site.items():
            parts = [torch.arange(int(offsets[n]), int(offsets[n + 1])) for n in segments]
            tokens = torch.cat([torch.zeros(0, dtype=torch.int64), *parts])
            lengths = torch.tensor([len(part) for part in parts], dtype=torch.int64)
            chosen[name] = (p[tokens], q[tokens], torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]))
        return Tokens(chosen)

    def batches(self, *sizes):
        """In batches of these sizes, the last of what is left."""
        bounds = [0, *np.cumsum(sizes).tolist(), len(self)]
        return [self.select(range(a, b)) for a, b in zip(bounds[:-1], bounds[1:], strict=True) if a < b]

    def gradients(self, name):
        """`Σ_t p_t q_tᵀ` of every segment, flat, float64."""
        p, q, offsets = (x.double().numpy() if x.is_floating_point() else x.numpy() for x in self.by_site[name])
        sums = [(p[a:b].T @ q[a:b]).ravel() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
        return np.stack(sums) if sums else np.zeros((0, p.shape[1] * q.shape[1]))

    def jacobians(self, sites):
        """Of all sites side by side."""
        return np.concatenate([self.gradients(site.name) for site in sites], 1)


def feed(consumer, tokens, sites):
    for site in sites:
        consumer.consume(site, *tokens.by_site[site.name])
    return consumer


@dataclass(frozen=True)
class Shape:
    """Sites, and lengths of the segments that are fitted and of those that are scored.

    Attributes:
        owners: of sites that share another one's q, that one.
        single: sites that see one token of a segment alone, as a head does.
    """

    sites: list
    fitted: list
    scored: list
    owners: dict = field(default_factory=dict)
    single: tuple = ()

    def tokens(self, lengths, seed, dtype):
        """Normal vectors whose sizes fall along the directions of a random basis, so that eigenvalues lie apart."""
        generator = torch.Generator().manual_seed(seed)

        def vectors(count, size):
            basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
            scale = 0.8 ** torch.arange(size, dtype=torch.float64)
            return (torch.randn(count, size, generator=generator, dtype=torch.float64) * scale @ basis.T).to(dtype)

        by_site = {}
        for site in self.sites:
            own = [min(length, 1) for length in lengths] if site.name in self.single else lengths
            offsets = torch.tensor([0, *np.cumsum(own).tolist()])
            p, q = vectors(sum(own), site.r), vectors(sum(own), site.d)
            owner = self.owners.get(site.name, site.name)
            by_site[site.name] = (p, q if owner == site.name else by_site[owner][1], offsets)
        return Tokens(by_site)


SHAPES = {
    "three sites": Shape(
        [Site("a", 4, 20, "q"), Site("b", 3, 15, "p"), Site("head", 1, 12, "q")],
        [5, 3, 9, 1, 4, 7, 2, 6, 5, 3, 8, 4],
        [3, 12, 1, 5, 6],
        single=("head",),
    ),
    "empty segments": Shape([Site("a", 2, 17, "q"), Site("b", 5, 11, "p")], [4, 0, 7, 3, 0, 9, 2], [0, 4, 0, 0, 2, 0]),
    "one row": Shape([Site("a", 1, 9, "q")], [1, 1, 6, 1, 2], [1, 1, 1]),
    "a shared input": Shape(
        [Site("q", 3, 10, "q"), Site("k", 2, 10, "q"), Site("k.B", 2, 8, "p")],
        [6, 2, 8, 5, 4, 7],
        [4, 9],
        owners={"q": "q", "k": "q"},
    ),
}


def merged(make_consumer, shards, sites):
    """Each shard's batches into a consumer of its own, made for the pairs before it, and these into one."""
    before = [0, *np.cumsum([sum(map(len, batches)) for batches in shards]).tolist()]
    first, *others = [make_consumer(count) for count in before[:-1]]
    for consumer, batches in zip([first, *others], shards, strict=True):
        for batch in batches:
            feed(consumer, batch, sites)
    for other in others:
        first.merge(other)
    return first


def fitted_kronecker(shape, shards, rank, dtype, record):
    sites = shape.sites
    moments = merged(lambda _: KroneckerMoments(sites, shape.owners, rank, CPU), shards, sites)
    blocks = kfac_blocks(moments, rank, dtype)
    if record.structure == "ekfac":
        bases = {name: (block.basis_p, block.basis_q) for name, block in blocks.items()}
        blocks = ekfac_blocks(blocks, merged(lambda _: EigenvalueCorrection(bases), shards, sites))
    return KroneckerPosterior(sites, blocks, record, PRIOR, TEMPERATURE)


def fitted_ggn(shape, shards, rank, dtype, record):
    sites = shape.sites
    pairs = record.pairs
    sketch = merged(lambda before: GgnSketch(sites, rank, pairs, CPU, dtype, None, before), shards, sites)
    rows, values = sketch.eigenpairs(rank)
    bases = {site.name: StoredBasis(rows[site.name].view(-1, site.r, site.d)) for site in sites}
    return GgnPosterior.from_factor(sites, bases, values.sqrt().diag(), record, PRIOR, TEMPERATURE)


def descending(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return values[::-1], vectors[:, ::-1]


def blocks_on_the_diagonal(blocks):
    total = np.zeros((sum(map(len, blocks)),) * 2)
    start = 0
    for block in blocks:
        stop = start + len(block)
        total[start:stop, start:stop] = block
        start = stop
    return total


def dense_kronecker(tokens, sites, rank, is_measured):
    """docs/maths.md, section 2."""
    blocks = []
    for site in sites:
        p, q, _ = (x.double().numpy() for x in tokens.by_site[site.name])
        gamma, v = descending(p.T @ p)
        mu, u = descending(q.T @ q)
        basis = np.kron(v, u)
        values = np.outer(gamma, mu) / len(p)
        if is_measured:
            values = np.square(tokens.gradients(site.name) @ basis).sum(0).reshape(values.shape)
        if rank is not None and rank < site.d:
            values[:, rank:] = values[:, rank:].mean(1, keepdims=True)
        blocks.append(basis @ np.diag(values.ravel()) @ basis.T)
    return blocks_on_the_diagonal(blocks)


def dense_kfac(tokens, sites, rank):
    return dense_kronecker(tokens, sites, rank, is_measured=False)


def dense_ekfac(tokens, sites, rank):
    return dense_kronecker(tokens, sites, rank, is_measured=True)


def dense_ggn(tokens, sites, rank):
    """docs/maths.md, section 7, of so few pairs that their own gradients are kept."""
    j = tokens.jacobians(sites)
    values, vectors = descending(j.T @ j)
    return vectors[:, :rank] * values[:rank] @ vectors[:, :rank].T


@dataclass(frozen=True)
class Structure:
    """How a structure is fitted, and what its GGN is.

    Attributes:
        fit: from a shape, shards of batches, a rank, a dtype and a record to a posterior.
        dense: from tokens, sites and a rank to the GGN, float64.
        ranks: full and truncated.
    """

    fit: Callable
    dense: Callable
    ranks: tuple


STRUCTURES = {
    "kfac": Structure(fitted_kronecker, dense_kfac, (None, 5)),
    "ekfac": Structure(fitted_kronecker, dense_ekfac, (None, 5)),
    "ggn": Structure(fitted_ggn, dense_ggn, (None, 4)),
}


@dataclass(frozen=True)
class Case:
    """One structure on one shape, with the dense float64 answer beside it."""

    structure: str
    rank: int | None
    shape_name: str
    dtype: torch.dtype

    def __str__(self):
        return f"{self.structure}-{self.rank or 'full'}-{self.shape_name}-{str(self.dtype).removeprefix('torch.')}"

    @property
    def shape(self):
        return SHAPES[self.shape_name]

    @property
    def sites(self):
        return self.shape.sites

    @property
    def fitted_tokens(self):
        return _tokens(self.shape_name, "fitted", self.dtype)

    @property
    def scored_tokens(self):
        return _tokens(self.shape_name, "scored", self.dtype)

    @property
    def jacobians(self):
        return self.scored_tokens.jacobians(self.sites)

    def fit(self, shards=None):
        """From shards of batches; of all pairs as one batch by default."""
        tokens = self.fitted_tokens
        record = replace(RECORD, structure=self.structure, rank=self.rank, pairs=len(tokens))
        return STRUCTURES[self.structure].fit(self.shape, shards or [[tokens]], self.rank, self.dtype, record)

    def dense(self):
        return _dense(self)

    def dense_covariance(self, jacobians, precision, ggn=None):
        ggn = self.dense() if ggn is None else ggn
        return jacobians @ np.linalg.solve(ggn + precision * np.eye(len(ggn)), jacobians.T)


@cache
def _tokens(shape_name, kind, dtype):
    shape = SHAPES[shape_name]
    return shape.tokens(getattr(shape, kind), ["fitted", "scored"].index(kind), dtype)


@cache
def _dense(case):
    return STRUCTURES[case.structure].dense(case.fitted_tokens, case.sites, case.rank)


def cases():
    """Every shape in float64, and the first one in float32."""
    kinds = [(name, torch.float64) for name in SHAPES] + [(next(iter(SHAPES)), torch.float32)]
    return [
        Case(structure, rank, *kind) for structure, one in STRUCTURES.items() for rank in one.ranks for kind in kinds
    ]


def variances(posterior, tokens, sites=None):
    return feed(posterior.variance_consumer(), tokens, posterior.sites if sites is None else sites).variance


def covariance(posterior, tokens):
    """From whitened gradients."""
    inside, outside = feed(posterior.feature_consumer(), tokens, posterior.sites).features()
    total = torch.zeros(len(tokens), len(tokens), dtype=torch.float64)
    for rows in [*inside.values(), *outside.values()]:
        total += rows.double() @ rows.double().T
    return total
