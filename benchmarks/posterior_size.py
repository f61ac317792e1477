"""What a posterior's bytes buy: variances of smaller `ggn` posteriors beside the exact linearised posterior's.

    python -m benchmarks.posterior_size            # ten minutes on two cores
    python -m benchmarks.posterior_size --quick    # a minute; shows that it runs

Models, pairs and responses are those of `benchmarks.fidelity`. Every gradient is formed, in float64, so that each way
to a smaller posterior is a few lines of linear algebra:

- fewer eigenvectors, or as many as a bound on the variance ratio wants: `1 + s_{K+1} / λ`, for any gradient;
- the same eigenvectors in bfloat16 or int8, made orthonormal again;
- the sites of the last third of the layers alone: their backward pass is cheaper too;
- eigenvectors whose columns are mixed by random signs into an eighth or a quarter of them (a random projection of each
  site's larger side): coordinates are then estimates.
"""

import json
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bayesrm_fast.cli.terminal import quiet_transformers
from bayesrm_fast.posterior.stored_basis import StoredBasis
from bayesrm_fast.sites import Site
from benchmarks import machine
from benchmarks.data import RESULTS
from benchmarks.fidelity import CASES, FULL, QUICK, Case, Scale, compared, jacobians, prepared

RANKS = (16, 32, 64, 128)
BOUNDS = (1.05, 1.1, 1.5, 3.0)
"""Of the variance ratio."""
PROJECTIONS = (8, 4)
"""Columns of a site over those that are left."""
MORE_PAIRS = 1e-3
"""λ beside those of `benchmarks.fidelity`: with c times the GGN, λ is what λ / c is with this one, so that 0.001 stands
for λ = 0.1 and a hundred times as many pairs."""


@dataclass(frozen=True)
class Curvature:
    """The GGN's eigenpairs, from all pairs' gradients.

    Attributes:
        eigenvectors: `[M, P]`, float64.
        eigenvalues: `[M]`, float64, descending.
    """

    eigenvectors: Tensor
    eigenvalues: Tensor

    @classmethod
    def of(cls, weighted: Tensor) -> "Curvature":  # shape: (M, P)
        """Of gradients times the root of their likelihood's weight."""
        values, vectors = torch.linalg.eigh(weighted @ weighted.T)
        order = values.argsort(descending=True)
        values, vectors = values[order].clamp(min=0), vectors[:, order]
        there = values > values[0] * 1e-12
        return cls((vectors[:, there].T @ weighted) / values[there].sqrt()[:, None], values[there])


def variances(
    inside: Tensor,  # shape: (N, K)
    squared_norm: Tensor,  # shape: (N,)
    eigenvalues: Tensor,  # shape: (K,)
    precisions: tuple[float, ...],
) -> Tensor:  # shape: (L, N)
    """By coordinates in orthonormal eigenvectors, with the prior outside of them."""
    squares = inside.square()
    outside = (squared_norm - squares.sum(1)).clamp(min=0)
    return torch.stack([squares @ (1 / (eigenvalues + one)) + outside / one for one in precisions])


def rounded(vectors: Tensor, eigenvalues: Tensor, sites: list[Site], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Eigenpairs of the GGN that the rounded vectors and these eigenvalues give. Shapes: (K, P), (K,)."""
    parts = vectors.float().split([site.r * site.d for site in sites], 1)
    stored = [StoredBasis.of(part.view(-1, site.r, site.d), dtype) for part, site in zip(parts, sites, strict=True)]
    eye = torch.eye(len(vectors), dtype=torch.float64)
    again = Curvature.of(eigenvalues.sqrt()[:, None] * torch.cat([one.combined(eye) for one in stored], 1))
    return again.eigenvectors, again.eigenvalues


def projected(rows: Tensor, sites: list[Site], by: int) -> Tensor:  # (N, P) -> (N, P / by)
    """Each site's larger side mixed by random signs into a `by`-th of it: inner products are right in the mean."""
    found, generator = [], torch.Generator().manual_seed(0)
    for part, site in zip(rows.split([site.r * site.d for site in sites], 1), sites, strict=True):
        kept = max(site.d // by, 1)
        signs = torch.randint(0, 2, (site.d, kept), generator=generator).double() * 2 - 1
        found.append((part.view(-1, site.r, site.d) @ (signs / kept**0.5)).flatten(1))
    return torch.cat(found, 1)


def rank_for(eigenvalues: Tensor, precision: float, bound: float) -> int:
    """The fewest eigenvectors with which no gradient's variance is over the exact one's times `bound`."""
    return int((eigenvalues > (bound - 1) * precision).sum())


def in_last_third(sites: list[Site]) -> list[bool]:
    """Which sites are in the last third of the layers."""
    layers = [int(re.findall(r"\.(\d+)\.", site.name)[0]) for site in sites]
    first = max(layers) + 1 - max((max(layers) + 1) // 3, 1)
    return [layer >= first for layer in layers]


def measured(case: Case, scale: Scale, folder: Path) -> dict[str, Any]:
    """One case: a row for each way, with its share of the bytes of 128 eigenvectors in float32."""
    rm, rows, pairs = prepared(case, scale, folder)
    passes = rm.fit(pairs[:2], rank=1, prior_precision=1.0).passes()  # for its sites: all that are adapted
    sites = list(passes.tapped.sites)
    margins, gradients = jacobians(passes, rm.tokenize_pairs(pairs))
    weighted = gradients * (torch.sigmoid(margins) * torch.sigmoid(-margins)).sqrt()[:, None]
    _, tested = jacobians(passes, rows)
    curvature, squared_norm = Curvature.of(weighted), tested.square().sum(1)
    vectors, values = curvature.eigenvectors, curvature.eigenvalues
    exact = variances(tested @ vectors.T, squared_norm, values, scale.precisions)
    whole, most = 4 * 128 * tested.shape[1], min(128, len(values))
    methods: dict[str, dict[str, Any]] = {}

    def add(name: str, found: Tensor, stored_bytes: float) -> None:
        figures = compared(found, exact, scale.precisions)
        methods[name] = {"share_of_bytes": stored_bytes / whole, "figures": figures}

    def truncated(rank: int, indices: slice = slice(None)) -> Tensor:
        inside = tested @ vectors[:rank].T
        return variances(inside, squared_norm, values[:rank], scale.precisions)[indices]

    for rank in RANKS:
        kept = min(rank, len(values))
        add(f"{rank}, float32", truncated(kept), 4 * kept * tested.shape[1])
    for dtype in (torch.bfloat16, torch.int8):
        for rank in RANKS:
            kept = min(rank, len(values))
            own, own_values = rounded(vectors[:kept], values[:kept], sites, dtype)
            found = variances(tested @ own.T, squared_norm, own_values, scale.precisions)
            name = str(dtype).removeprefix("torch.")
            add(f"{rank}, {name}", found, dtype.itemsize * kept * tested.shape[1])
    last = torch.cat([torch.full((s.r * s.d,), there) for s, there in zip(sites, in_last_third(sites), strict=True)])
    fewer = Curvature.of(weighted[:, last])
    inside = tested[:, last] @ fewer.eigenvectors[:most].T
    found = variances(inside, tested[:, last].square().sum(1), fewer.eigenvalues[:most], scale.precisions)
    add("128, last third of the layers", found, 4 * most * int(last.sum()))
    for by in PROJECTIONS:
        mixed, mixed_vectors = projected(tested, sites, by), projected(vectors[:most], sites, by)
        found = variances(mixed @ mixed_vectors.T, squared_norm, values[:most], scale.precisions)
        add(f"128, a random {by}th of each larger side", found, 4 * mixed_vectors.numel())
    for bound in BOUNDS:
        chosen = [rank_for(values, one, bound) for one in scale.precisions]
        found = torch.stack([truncated(rank)[i] for i, rank in enumerate(chosen)])
        name = f"none more than {bound} times too large"
        add(name, found, 4 * max(chosen) * tested.shape[1])
        methods[name]["ranks"] = chosen
    return {"pairs": len(pairs), "rows": len(rows), "parameters": tested.shape[1], "methods": methods}


def main(
    quick: Annotated[bool, typer.Option(help="Small; shows that everything runs.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Measure every case and tell."""
    console = Console(width=150)
    quiet_transformers()
    scale = QUICK if quick else replace(FULL, precisions=(MORE_PAIRS, *FULL.precisions))
    cases: dict[str, Any] = {}
    for case in CASES[:1] if quick else CASES:
        with tempfile.TemporaryDirectory() as folder:
            cases[case.title] = measured(case, scale, Path(folder))
        show(case.title, cases[case.title], scale, console)
    results = {"command": "python -m benchmarks.posterior_size" + " --quick" * quick, "machine": machine.describe()}
    path = output / ("posterior_size-quick.json" if quick else "posterior_size.json")
    path.write_text(json.dumps(results | {"cases": cases}, indent=1) + "\n")


def show(title: str, case: dict[str, Any], scale: Scale, console: Console) -> None:
    """Rank correlation, and the ratio's median and 95 % quantile, by λ."""
    table = Table("", "bytes", *(f"λ = {one:g}" for one in scale.precisions), title=title)
    for name, row in case["methods"].items():
        cells = [f"{f['spearman']:.3f}, {f['median_ratio']:.2f}, {f['ratio_95']:.2f}" for f in row["figures"]]
        table.add_row(name, f"{row['share_of_bytes']:.3f}", *cells)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
