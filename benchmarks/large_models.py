"""What large models cost and keep, by arithmetic from their shapes; nothing is measured here.

`python -m benchmarks.large_models` prints the tables of docs/scale.md: bytes of posteriors, bytes that a ggn fit keeps,
and GPU hours for a million candidates.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table

from bayesrm_fast.fit.sketches import sketch_columns
from bayesrm_fast.sites import Site

SCORING = Path(__file__).parent / "results" / "scoring.json"
PEAK, UTILISATION = 989e12, 0.4
"""Of an H100 in bfloat16, from its data sheet; and the share of it that forward passes are assumed to have."""

TOKENS = 1024
"""Of a candidate with its prompt."""


@dataclass(frozen=True)
class Shape:
    """A decoder with grouped keys and values and a gated feed-forward block."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int

    @property
    def projections(self) -> dict[str, tuple[int, int, str]]:
        """Inputs, outputs, and the first projection on the same input, of each in a layer."""
        queries, keys = self.heads * self.head_size, self.key_value_heads * self.head_size
        return {
            "q": (self.hidden, queries, "q"),
            "k": (self.hidden, keys, "q"),
            "v": (self.hidden, keys, "q"),
            "o": (queries, self.hidden, "o"),
            "gate": (self.hidden, self.intermediate, "gate"),
            "up": (self.hidden, self.intermediate, "gate"),
            "down": (self.intermediate, self.hidden, "down"),
        }

    @property
    def weights(self) -> int:
        """Of all projections: those that a token is multiplied with."""
        return self.layers * sum(d_in * d_out for d_in, d_out, _ in self.projections.values())


SHAPES = {
    "1B": Shape(2048, 8192, 16, 32, 8, 64),
    "8B": Shape(4096, 14336, 32, 32, 8, 128),
    "70B": Shape(8192, 28672, 80, 64, 8, 128),
}


@dataclass(frozen=True)
class OwnedSite:
    """A site, and the one whose basis of activations it shares."""

    site: Site
    owner: str


def lora_sites(shape: Shape, r: int, projections: Sequence[str], layers: int | None = None) -> list[OwnedSite]:
    """A and B of LoRA on these projections of the last layers, all of them for None."""
    found = []
    for layer in range(layers or shape.layers):
        for name in projections:
            d_in, d_out, owner = shape.projections[name]
            first = owner if owner in projections else next(p for p in projections if shape.projections[p][2] == owner)
            a, b = f"{layer}.{name}.A", f"{layer}.{name}.B"
            found += [OwnedSite(Site(a, r, d_in, "q"), f"{layer}.{first}.A"), OwnedSite(Site(b, r, d_out, "p"), b)]
    return found


def posterior_bytes(sites: Sequence[OwnedSite], structure: str, rank: int | None, dtype: torch.dtype) -> int:
    """Bytes of a posterior's tensors.

    Args:
        sites: what it is over.
        structure: "kfac", "ekfac" or "ggn".
        rank: eigenvectors kept; None for all of each large side.
        dtype: of the bases; kfac's and ekfac's are of the gradients, float32.
    """
    if structure == "ggn":
        assert rank is not None
        bases = rank * sum(one.site.r * one.site.d for one in sites) * dtype.itemsize
        scales = 8 * rank * len(sites) if dtype == torch.int8 else 0
        return bases + scales + 8 * rank * (rank + 1)
    total, counted = 0, set()
    for one in sites:
        r, d = one.site.r, one.site.d
        k = d if rank is None else min(rank, d)
        total += r * r + r * k + r
        if one.owner not in counted:
            counted.add(one.owner)
            total += d * k
    return total * dtype.itemsize


def fit_bytes(sites: Sequence[OwnedSite], rank: int, second_pass: bool = False) -> int:
    """Bytes that a ggn fit of many pairs keeps beside its batches: test matrix, sketch, and what is made of it."""
    columns = sketch_columns(rank, [one.site for one in sites])
    vectors = 2 * columns + (columns if second_pass else min(rank, columns))
    return 4 * vectors * sum(one.site.r * one.site.d for one in sites)


def gpu_hours(shape: Shape, plain_forwards: float, candidates: int = 10**6) -> float:
    """Of scoring so many candidates, for what costs so many plain forward passes."""
    return plain_forwards * 2 * shape.weights * TOKENS * candidates / (PEAK * UTILISATION) / 3600


def measured_ratios() -> dict[str, float]:
    """Plain forward passes that each formulation took, at the smallest and at the largest model that was measured."""
    parts = json.loads(SCORING.read_text())["parts"]
    ratios = {}
    for size in ("hidden 256", "hidden 1024"):
        for name, part in (("kfac", "structures"), ("ggn", "structures"), ("ggn, relative", "relative")):
            ratios[f"{name}, {size}"] = parts[part][size]["formulations"][name]["plain_forwards"]
    return ratios


def main() -> None:
    """Print the tables."""
    console = Console(width=140)
    every = list(SHAPES["8B"].projections)
    table = Table("model", "LoRA", "weights (M)", "ggn float32", "bfloat16", "int8", "kfac, 64", "ggn fit", title="GB")
    for name, shape in SHAPES.items():
        for what, r, projections, layers in (
            ("r = 16, all seven", 16, every, None),
            ("r = 8, all seven", 8, every, None),
            ("r = 16, q and v", 16, ["q", "v"], None),
            ("r = 16, all seven, last third of the layers", 16, every, shape.layers // 3),
        ):
            sites = lora_sites(shape, r, projections, layers)
            sizes = [
                *(posterior_bytes(sites, "ggn", 128, dtype) for dtype in (torch.float32, torch.bfloat16, torch.int8)),
                posterior_bytes(sites, "kfac", 64, torch.float32),
                fit_bytes(sites, 128),
            ]
            weights = sum(one.site.r * one.site.d for one in sites) / 1e6
            table.add_row(name, what, f"{weights:.1f}", *(f"{size / 1e9:.2f}" for size in sizes))
    console.print(table)
    ratios = {"reward alone": 1.0, "forward and backward, in theory": 2.0, **measured_ratios()}
    table = Table("", "plain forwards", *SHAPES, title="GPU hours for a million candidates")
    for name, ratio in ratios.items():
        table.add_row(name, f"{ratio:.2f}", *(f"{gpu_hours(shape, ratio):.1f}" for shape in SHAPES.values()))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
