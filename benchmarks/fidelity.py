"""How near each posterior's variances are to the exact linearised posterior's, on real preference pairs.

    python -m benchmarks.fidelity            # an hour on two cores, most of it the peers
    python -m benchmarks.fidelity --case Llama
    python -m benchmarks.fidelity --quick    # a minute; small, and compared with loose bounds in the tests

The exact posterior is solved densely in float64 from the pairs' Jacobians: with `G = √Λ J` of M pairs,
`v = (‖j‖² − (Gj)ᵀ (GGᵀ + λI)⁻¹ Gj) / λ`. The variances are those of responses to prompts that no model was trained on.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.cli.terminal import quiet_transformers
from bayesrm_fast.model.head import find_head_tap
from bayesrm_fast.model.passes import Passes, unit_cotangent
from bayesrm_fast.model.taps import TappedModel
from bayesrm_fast.ops import segment_outer
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.posterior.ggn import GgnPosterior
from bayesrm_fast.posterior.kronecker import KroneckerPosterior
from bayesrm_fast.posterior.stored_basis import StoredBasis
from bayesrm_fast.sites import Site
from bayesrm_fast.text.examples import Example, TokenizedPair, TokenizedRow
from bayesrm_fast.train.adapter import TrainOptions, train_adapter
from benchmarks import machine, peers
from benchmarks.data import RESULTS, embedded_encoder
from benchmarks.estimators import rank_correlation
from benchmarks.judged import alpaca_eval, preference_pairs
from benchmarks.timing import in_turns

OURS: dict[str, dict[str, Any]] = {
    "kfac, 10": {"structure": "kfac", "rank": 10},
    "kfac, 64": {"structure": "kfac", "rank": 64},
    "kfac, full": {"structure": "kfac", "rank": None},
    "ekfac, 64": {"structure": "ekfac", "rank": 64},
    "ggn, 32": {"structure": "ggn", "rank": 32},
    "ggn, 128": {"structure": "ggn", "rank": 128},
    "ggn, 256": {"structure": "ggn", "rank": 256},
    "ggn, 128, two passes": {"structure": "ggn", "rank": 128, "second_pass": True},
}
TIMED = ("kfac, 64", "ggn, 128")


@dataclass(frozen=True)
class Scale:
    """How large a run is."""

    prompts: int
    test_prompts: int
    responses: int
    max_length: int
    epochs: float
    timed_pairs: int
    rounds: int
    precisions: tuple[float, ...]


FULL = Scale(
    prompts=200,
    test_prompts=8,
    responses=20,
    max_length=128,
    epochs=2,
    timed_pairs=200,
    rounds=5,
    precisions=(0.1, 1.0, 10.0, 100.0),
)
QUICK = Scale(
    prompts=30,
    test_prompts=3,
    responses=8,
    max_length=48,
    epochs=1,
    timed_pairs=10,
    rounds=1,
    precisions=(1e-4, 1e-3, 1e-2),
)


@dataclass(frozen=True)
class Case:
    """A model to be trained."""

    title: str
    lora_rank: int
    targets: list[str]
    base: Callable[[Path], Path]
    is_timed: bool = False


def small_llama(folder: Path) -> Path:
    """A two-layer Llama of random weights with the encoder's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(embedded_encoder())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=512,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    return folder / "llama"


EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = [
    Case("MiniLM, r = 4", 4, ["query", "value"], lambda _: embedded_encoder()),
    Case("MiniLM, r = 8", 8, ["query", "value"], lambda _: embedded_encoder(), is_timed=True),
    Case("Llama, 2 layers, r = 8", 8, EVERY_LINEAR, small_llama),
]


class Gradients:
    """A consumer that keeps every segment's gradient."""

    gradients_alone = True

    def __init__(self) -> None:
        self.parts: dict[str, Tensor] = {}

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Keep one site's."""
        self.parts[site.name] = segment_outer(p, q, offsets).flatten(1)


def jacobians(passes: Passes, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:  # shapes: (N,), (N, P)
    """Rewards, or a pair's difference, and their gradients, float64."""
    values = torch.zeros(len(examples), dtype=torch.float64)
    size = sum(site.r * site.d for site in passes.tapped.sites)
    rows = torch.zeros(len(examples), size, dtype=torch.float64)
    for batch in passes.over(examples, unit_cotangent, Gradients):
        values[batch.positions] = batch.rewards.double()
        parts = [batch.consumer.parts[site.name] for site in passes.tapped.sites]
        rows[batch.positions] = torch.cat(parts, 1).double()
    return values, rows


def exact_variances(
    passes: Passes, pairs: list[TokenizedPair], rows: list[TokenizedRow], precisions: Sequence[float]
) -> Tensor:  # shape: (L, N)
    """Of the rows, by a dense solve in the pairs' space."""
    margins, pair_gradients = jacobians(passes, pairs)
    weighted = pair_gradients * (torch.sigmoid(margins) * torch.sigmoid(-margins)).sqrt()[:, None]
    _, gradients = jacobians(passes, rows)
    products, cross = weighted @ weighted.T, weighted @ gradients.T
    squared_norms = gradients.square().sum(1)
    found = []
    for precision in precisions:
        system = products + precision * torch.eye(len(products), dtype=torch.float64)
        found.append((squared_norms - (cross * torch.linalg.solve(system, cross)).sum(0)) / precision)
    return torch.stack(found)


def ours(
    passes: Passes, rows: list[TokenizedRow], posterior: Posterior, precisions: Sequence[float]
) -> Tensor:  # shape: (L, N)
    """Variances at every λ."""
    found = torch.zeros(len(precisions), len(rows), dtype=torch.float64)
    for batch in passes.over(rows, unit_cotangent, partial(posterior.variance_curve_consumer, precisions)):
        found[:, batch.positions] = batch.consumer.variance.double()
    return found


def without_tail(posterior: Posterior) -> KroneckerPosterior:
    """As Laplace-LoRA has it: no curvature outside the kept eigenvectors."""
    assert isinstance(posterior, KroneckerPosterior)
    blocks = {name: replace(b, tail=torch.zeros_like(b.tail)) for name, b in posterior.blocks.items()}
    return KroneckerPosterior(posterior.sites, blocks, posterior.record, posterior.prior)


def rounded(posterior: GgnPosterior, dtype: torch.dtype) -> GgnPosterior:
    """As a fit with `basis_dtype` gives it."""
    bases = {name: StoredBasis.of(basis.values, dtype) for name, basis in posterior.bases.items()}
    scale = posterior.eigenvalues.sqrt()[:, None] * posterior.transform
    return GgnPosterior.from_factor(posterior.sites, bases, scale, posterior.record, posterior.prior)


def compared(found: Tensor, exact: Tensor, precisions: Sequence[float]) -> list[dict[str, float]]:
    """For each λ: how the variances rank, correlate and compare with the exact ones."""
    figures = []
    for precision, ours_, theirs in zip(precisions, found.numpy(), exact.numpy(), strict=True):
        low, median, high = np.quantile(ours_ / theirs, [0.05, 0.5, 0.95])
        figures.append(
            {
                "prior_precision": precision,
                "spearman": rank_correlation(ours_, theirs),
                "log_pearson": float(np.corrcoef(np.log(ours_), np.log(theirs))[0, 1]),
                "median_ratio": float(median),
                "ratio_05": float(low),
                "ratio_95": float(high),
            }
        )
    return figures


def stored_bytes(posterior: Posterior) -> int:
    """Of the tensors that a file of the posterior holds."""
    return sum(tensor.nbytes for tensor in posterior.tensors().values())


def prepared(
    case: Case, scale: Scale, folder: Path
) -> tuple[BayesianRewardModel, list[TokenizedRow], list[dict[str, str]]]:
    """A trained model, responses to other prompts, and the pairs it was trained on."""
    train, dev = alpaca_eval("train")[: scale.prompts], alpaca_eval("dev")[: scale.test_prompts]
    pairs = preference_pairs(train, 2, seed=0)
    options = TrainOptions(
        lora_rank=case.lora_rank,
        lora_alpha=2 * case.lora_rank,
        target_modules=case.targets,
        epochs=scale.epochs,
        learning_rate=1e-3,
        max_length=scale.max_length,
    )
    train_adapter(case.base(folder), pairs, folder / "adapter", options)
    rm = BayesianRewardModel.from_pretrained(folder / "adapter", max_length=scale.max_length, device="cpu")
    prompts = [row["prompt"] for row in dev for _ in row["responses"][: scale.responses]]
    texts = [response["text"] for row in dev for response in row["responses"][: scale.responses]]
    return rm, rm.tokenize(prompts, texts), pairs


def measured(case: Case, scale: Scale, folder: Path) -> dict[str, Any]:
    """One case: every posterior against the exact one."""
    rm, rows, pairs = prepared(case, scale, folder)
    tokenized_pairs = rm.tokenize_pairs(pairs)
    methods: dict[str, dict[str, Any]] = {}
    fits: dict[str, Callable[[], Posterior]] = {}
    scores: dict[str, Callable[[], Any]] = {}
    exact: Tensor | None = None
    for name, choice in OURS.items():
        start = time.perf_counter()
        posterior = rm.fit(pairs, prior_precision=1.0, **choice).fitted
        seconds = time.perf_counter() - start
        passes = rm.passes()
        if exact is None:
            exact = exact_variances(passes, tokenized_pairs, rows, scale.precisions)
        methods[name] = {
            "figures": compared(ours(passes, rows, posterior, scale.precisions), exact, scale.precisions),
            "fit_seconds": seconds,
            "stored_bytes": stored_bytes(posterior),
        }
        if name == "kfac, 10":
            bare = without_tail(posterior)
            methods["kfac, 10, no tail"] = {
                **methods[name],
                "figures": compared(ours(passes, rows, bare, scale.precisions), exact, scale.precisions),
            }
        if name == "ggn, 128":
            assert isinstance(posterior, GgnPosterior)
            for dtype in (torch.bfloat16, torch.int8):
                stored = rounded(posterior, dtype)
                methods[f"ggn, 128, {str(dtype).removeprefix('torch.')}"] = {
                    **methods[name],
                    "figures": compared(ours(passes, rows, stored, scale.precisions), exact, scale.precisions),
                    "stored_bytes": stored_bytes(stored),
                }
        if case.is_timed and name in TIMED:
            fits[name] = lambda choice=choice: rm.fit(pairs[: scale.timed_pairs], prior_precision=1.0, **choice).fitted
            scores[name] = _scoring(rm, rows[:64], posterior)
    assert exact is not None
    head = TappedModel(passes.forward, [find_head_tap(rm.model, [])])
    start = time.perf_counter()
    last = exact_variances(replace(passes, tapped=head), tokenized_pairs, rows, scale.precisions)
    methods["head alone"] = {
        "figures": compared(last, exact, scale.precisions),
        "fit_seconds": time.perf_counter() - start,
    }
    ratios = {}
    if case.is_timed:
        timed_fits, timed_scores = in_turns(fits, scale.rounds), in_turns(scores, scale.rounds)
        for what, timed in (("fit", timed_fits), ("score", timed_scores)):
            ratios[f"ggn_{what}_over_kfac"] = timed["ggn, 128"]["seconds"] / timed["kfac, 64"]["seconds"]
    for name in fits:
        methods[name]["timed_fit"], methods[name]["timed_score"] = timed_fits[name], timed_scores[name]
    for name, run in peers.fidelity_peers(rm, tokenized_pairs, rows, scale.precisions).items():
        start = time.perf_counter()
        try:
            found, fit_seconds, size = run()
        except Exception as error:  # a peer that cannot run is a row that says so
            methods[name] = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:160]}
            continue
        methods[name] = {
            "figures": compared(found.double(), exact, scale.precisions),
            "fit_seconds": fit_seconds,
            "score_seconds": (time.perf_counter() - start - fit_seconds) / len(scale.precisions),
            "stored_bytes": size,
        }
    return {"pairs": len(pairs), "rows": len(rows), "parameters": posterior.parameters, "methods": methods, **ratios}


def _scoring(rm: BayesianRewardModel, rows: list[TokenizedRow], posterior: Posterior) -> Callable[[], Any]:
    def run() -> Any:
        rm.posterior = posterior
        return rm.score_tokenized(rows)

    return run


def draw(results: dict[str, Any], path: Path) -> None:
    """Ratio of the variances to the exact ones, and their rank correlation, against λ."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {
        "kfac, 10, no tail": ("kfac, k = 10, no tail (Laplace-LoRA)", "#999999"),
        "kfac, full": ("kfac, full", "#e09f3e"),
        "ekfac, 64": ("ekfac, k = 64", "#d1495b"),
        "laplace-torch, Kron": ("laplace-torch, Kron", "#7b4fa3"),
        "ggn, 32": ("ggn, K = 32", "#7fb8da"),
        "ggn, 128": ("ggn, K = 128", "#1b6fb3"),
    }
    figure, axes = pyplot.subplots(
        2,
        len(results),
        figsize=(4.2 * len(results), 6.4),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, (title, case) in enumerate(results.items()):
        above, below = axes[:, column]
        for i, (name, (label, colour)) in enumerate(shown.items()):
            figures = case["methods"].get(name, {}).get("figures")
            if figures is None:
                continue
            x = np.array([row["prior_precision"] for row in figures]) * 1.08 ** (i - 2.5)
            median = np.array([row["median_ratio"] for row in figures])
            low, high = (np.array([row[key] for row in figures]) for key in ("ratio_05", "ratio_95"))
            above.errorbar(
                x, median, [median - low, high - median], color=colour, marker="o", ms=4, lw=1.2, label=label
            )
            below.plot(x, [row["spearman"] for row in figures], color=colour, marker="o", ms=4, lw=1.2)
        above.axhline(1, color="black", lw=0.7)
        above.set(title=title, yscale="log", xscale="log")
        below.set(xlabel="prior precision λ")
        for axis in (above, below):
            axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("variance / exact variance\nmedian, 90 % of the rows")
    axes[1, 0].set_ylabel("rank correlation with exact")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)


def print_case(title: str, case: dict[str, Any], console: Console) -> None:
    """One table: a row for each method, the λ side by side."""
    precisions = [row["prior_precision"] for row in case["methods"]["head alone"]["figures"]]
    table = Table("posterior", *(f"λ = {p:g}" for p in precisions), "fit, s", "MiB", title=title)
    for name, method in case["methods"].items():
        if "failed" in method:
            table.add_row(name, method["failed"])
            continue
        cells = [
            f"{f['median_ratio']:.2f} ({f['ratio_05']:.2f}–{f['ratio_95']:.2f}) ρ {f['spearman']:.3f}"
            for f in method["figures"]
        ]
        size = f"{method['stored_bytes'] / 2**20:.1f}" if "stored_bytes" in method else ""
        table.add_row(name, *cells, f"{method['fit_seconds']:.1f}", size)
    console.print(table)
    console.print({key: value for key, value in case.items() if key != "methods"})


def main(
    case: Annotated[str, typer.Option(help="Cases whose title has this in it; all of them by default.")] = "",
    quick: Annotated[bool, typer.Option(help="Small, one case: shows that everything runs.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the JSON file and the figure.")] = RESULTS,
) -> None:
    """Train, fit, compare; print the tables and write the JSON file and the figure.

    A case that is measured again replaces itself there.
    """
    quiet_transformers()
    console = Console(width=180)
    scale = QUICK if quick else FULL
    chosen = [one for one in (CASES[1:2] if quick else CASES) if case in one.title]
    if not chosen:
        raise SystemExit(f"--case {case} is in none of the titles: {'; '.join(one.title for one in CASES)}")
    command = "python -m benchmarks.fidelity" + (" --quick" if quick else "")
    path = output / ("fidelity-quick.json" if quick else "fidelity.json")
    before = json.loads(path.read_text())["cases"] if path.exists() and case else {}
    for one in chosen:
        with tempfile.TemporaryDirectory() as folder:
            before[one.title] = measured(one, scale, Path(folder)) | {"machine": machine.describe()}
        print_case(one.title, before[one.title], console)
    cases = {one.title: before[one.title] for one in CASES if one.title in before}
    path.write_text(json.dumps({"command": command, "scale": vars(scale), "cases": cases}, indent=1) + "\n")
    draw(cases, path.with_suffix(".png"))
    console.print(f"wrote {path} and .png")


if __name__ == "__main__":
    typer.run(main)
