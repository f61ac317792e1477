"""Gold quality of best-of-n under MAP rewards and under penalised ones, on real judged responses.

    python -m benchmarks.best_of_n            # about 9 minutes on two cores
    python -m benchmarks.best_of_n --quick    # half a minute, says nothing about quality

Trains a LoRA reward model on AlpacaEval's `train` prompts, fits its posterior and picks among the responses of the
`dev` prompts, alone and with distractors that answer another prompt.
"""

import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.passes import row_cotangent
from bayesrm_fast.progress import quiet_transformers
from bayesrm_fast.training import TrainOptions, train_adapter
from benchmarks import machine
from benchmarks.data import RESULTS, alpaca_eval, embedded_encoder
from benchmarks.estimators import auroc, best_of_n_kl, calibration, expected_best_of_n

GAP = 0.2
"""Smallest difference of gold between the two responses of a pair."""

DISTRACTORS = 20
SIZES = (1, 2, 4, 8, 16, 32, 56)
PRECISIONS = (1.0, 10.0, 100.0, 1000.0)
STD_WEIGHTS = (0.5, 1.0, 2.0, 4.0)
VARIANCE_WEIGHTS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Scale:
    """How large a run is."""

    pairs_per_prompt: int
    train_prompts: int
    dev_prompts: int
    candidates: int
    max_length: int
    epochs: float


FULL = Scale(pairs_per_prompt=2, train_prompts=360, dev_prompts=120, candidates=57, max_length=128, epochs=2)
QUICK = Scale(pairs_per_prompt=1, train_prompts=60, dev_prompts=6, candidates=57, max_length=64, epochs=1)


def preference_pairs(rows: list[dict[str, Any]], per_prompt: int, seed: int) -> list[dict[str, str]]:
    """Random pairs of a prompt's responses whose gold differs by at least `GAP`."""
    generator = random.Random(seed)
    pairs = []
    for row in rows:
        found = [
            (a, b)
            for i, a in enumerate(row["responses"])
            for b in row["responses"][i + 1 :]
            if abs(a["gold"] - b["gold"]) >= GAP and a["text"] != b["text"]
        ]
        for a, b in generator.sample(found, min(per_prompt, len(found))):
            better, worse = (a, b) if a["gold"] > b["gold"] else (b, a)
            pairs.append({"prompt": row["prompt"], "chosen": better["text"], "rejected": worse["text"]})
    return pairs


def with_distractors(rows: list[dict[str, Any]], candidates: int, seed: int) -> list[dict[str, Any]]:
    """Candidates of each prompt, then responses that answer other prompts, whose gold here is 0."""
    generator = random.Random(seed)
    sets = []
    for row in rows:
        own = row["responses"][:candidates]
        others = [other for other in rows if other is not row]
        strays = [generator.choice(generator.choice(others)["responses"])["text"] for _ in range(DISTRACTORS)]
        sets.append(
            {
                "prompt": row["prompt"],
                "texts": [response["text"] for response in own] + strays,
                "gold": np.array([response["gold"] for response in own] + [0.0] * DISTRACTORS),
                "own": len(own),
            }
        )
    return sets


def score_all(
    rm: BayesianRewardModel, sets: list[dict[str, Any]], precisions: list[float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean `[n]` and variance `[L, n]` of every candidate at every λ, from one pass over all prompts."""
    prompts = [s["prompt"] for s in sets for _ in s["texts"]]
    segments = [(row,) for row in rm.encoder.encode(prompts, [text for s in sets for text in s["texts"]])]
    posterior = rm.posterior
    assert posterior is not None
    mean = np.zeros(len(segments))
    variance = np.zeros((len(precisions), len(segments)))
    for positions, rewards, consumer in rm.passes().over(
        segments, row_cotangent, lambda _: posterior.variance_curve_consumer(precisions)
    ):
        mean[positions] = rewards[:, 0].numpy()
        variance[:, positions] = consumer.variance.numpy()
    bounds = np.cumsum([0] + [len(s["texts"]) for s in sets])
    return [(mean[a:b], variance[:, a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def rules(precisions: list[float]) -> list[tuple[str, Any]]:
    """Name of every selection rule with its score, from mean `[n]` and variance `[L, n]`."""
    found: list[tuple[str, Any]] = [("MAP", lambda mean, variance: mean)]
    for i, precision in enumerate(precisions):
        for k in STD_WEIGHTS:
            found.append((f"std k={k:g} λ={precision:.4g}", lambda m, v, i=i, k=k: m - k * np.sqrt(v[i])))
        for k in VARIANCE_WEIGHTS:
            found.append((f"variance k={k:g} λ={precision:.4g}", lambda m, v, i=i, k=k: m - k * v[i]))
    return found


def gold_table(
    sets: list[dict[str, Any]], scored: list[tuple[np.ndarray, np.ndarray]], precisions: list[float], distractors: bool
) -> dict[str, list[dict[str, float]]]:
    """Mean over the prompts of the expected gold at each n, with its standard error, for every rule."""
    table: dict[str, list[dict[str, float]]] = {}
    chosen = [*rules(precisions), ("gold oracle", None)]
    for name, rule in chosen:
        table[name] = []
        for n in SIZES:
            values = []
            for candidates, (mean, variance) in zip(sets, scored, strict=True):
                stop = len(candidates["texts"]) if distractors else candidates["own"]
                gold = candidates["gold"][:stop]
                scores = gold if rule is None else rule(mean[:stop], variance[:, :stop])
                if n <= stop:
                    values.append(expected_best_of_n(scores, gold, n))
            table[name].append(
                {
                    "n": n,
                    "gold": float(np.mean(values)),
                    "standard_error": float(np.std(values, ddof=1) / np.sqrt(len(values))),
                    "prompts": len(values),
                    "kl": best_of_n_kl(n),
                }
            )
    return table


def draw(results: dict[str, Any], path: Path) -> None:
    """Gold against n: MAP and the std penalty at the evidence's λ and at λ = 100, with and without distractors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    shown = results["shown"]
    for axis, key, title in zip(
        axes,
        ("without_distractors", "with_distractors"),
        ("judged responses only", f"with {DISTRACTORS} off-prompt distractors"),
        strict=True,
    ):
        for (name, label), colour in zip(shown.items(), ("#444444", "#1b7fbd", "#d1495b", "#2e9e6b"), strict=False):
            rows = results[key][name]
            n = [row["n"] for row in rows]
            gold = np.array([row["gold"] for row in rows])
            error = np.array([row["standard_error"] for row in rows])
            axis.plot(n, gold, marker="o", color=colour, label=label)
            axis.fill_between(n, gold - error, gold + error, color=colour, alpha=0.12, linewidth=0)
        axis.set(title=title, xscale="log", xlabel="n, candidates to choose among")
        axis.set_xticks(SIZES, [str(n) for n in SIZES])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("gold of the choice (GPT-4 preference)")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def main(
    quick: Annotated[bool, typer.Option(help="A small run that only shows that everything works.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of training and of the sampled pairs.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the JSON file and the figure.")] = RESULTS,
) -> None:
    """Train, fit, choose; print the tables and write the JSON file and the figure."""
    console = Console()
    quiet_transformers()
    scale = QUICK if quick else FULL
    train, dev = alpaca_eval("train")[: scale.train_prompts], alpaca_eval("dev")[: scale.dev_prompts]
    pairs = preference_pairs(train, scale.pairs_per_prompt, seed)
    held_out = preference_pairs(dev, scale.pairs_per_prompt, seed + 1)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train_adapter(
            embedded_encoder(),
            pairs,
            folder,
            TrainOptions(
                target_modules=["query", "value"],
                epochs=scale.epochs,
                learning_rate=1e-3,
                max_length=scale.max_length,
                seed=seed,
            ),
        )
        seconds["train"] = time.perf_counter() - start
        rm = BayesianRewardModel.from_pretrained(folder, device="cpu", max_length=scale.max_length)
    start = time.perf_counter()
    rm.fit(pairs, structure="ekfac", rank=64, prior_precision="evidence")
    seconds["fit"] = time.perf_counter() - start
    assert rm.posterior is not None
    evidence = rm.posterior.prior_precision
    precisions = [evidence, *PRECISIONS]
    console.print(
        f"{len(pairs)} pairs; training {seconds['train']:.0f} s, fit {seconds['fit']:.0f} s, λ = {evidence:.4g}"
    )

    sets = with_distractors(dev, scale.candidates, seed)
    start = time.perf_counter()
    scored = score_all(rm, sets, precisions)
    seconds["score"] = time.perf_counter() - start
    results: dict[str, Any] = {
        "command": "python -m benchmarks.best_of_n"
        + (" --quick" if quick else "")
        + (f" --seed {seed}" if seed else ""),
        "machine": machine.describe(),
        "scale": vars(scale),
        "seed": seed,
        "pairs": len(pairs),
        "structure": "ekfac",
        "rank": 64,
        "evidence_prior_precision": evidence,
        "seconds": seconds,
        "without_distractors": gold_table(sets, scored, precisions, distractors=False),
        "with_distractors": gold_table(sets, scored, precisions, distractors=True),
    }
    results["shown"] = {
        "MAP": "MAP reward",
        f"std k=1 λ={evidence:.4g}": f"mean − 1 std, λ by evidence ({evidence:.3g})",
        "std k=2 λ=100": "mean − 2 std, λ = 100",
        "gold oracle": "gold oracle",
    }
    results["auroc_of_std"] = {
        f"{precision:.4g}": float(
            np.mean([auroc(v[i][: s["own"]], v[i][s["own"] :]) for s, (_, v) in zip(sets, scored, strict=True)])
        )
        for i, precision in enumerate(precisions)
    }
    results["held_out_pairs"] = {}
    for precision in precisions:
        rm.posterior.prior_precision = precision
        scores = rm.score_pairs(held_out)
        results["held_out_pairs"]["MAP"] = calibration(torch.sigmoid(scores.mean).numpy())
        results["held_out_pairs"][f"probit λ={precision:.4g}"] = calibration(scores.probability.numpy())
    results["held_out_pairs"]["count"] = len(held_out)

    for key in ("without_distractors", "with_distractors"):
        table = Table("rule", *(f"n={n}" for n in SIZES), title=f"gold, {key.replace('_', ' ')}")
        for name, rows in results[key].items():
            table.add_row(name, *(f"{row['gold']:.3f}" for row in rows))
        console.print(table)
    console.print("standard error of MAP at n=56:", f"{results['with_distractors']['MAP'][-1]['standard_error']:.3f}")
    table = Table("held-out pairs", "accuracy", "NLL", "ECE", title=f"{len(held_out)} pairs of dev prompts")
    for name, row in results["held_out_pairs"].items():
        if name != "count":
            table.add_row(name, f"{row['accuracy']:.3f}", f"{row['nll']:.3f}", f"{row['ece']:.3f}")
    console.print(table)
    console.print("AUROC of the std, own responses against distractors:", results["auroc_of_std"])

    name = "best_of_n-quick" if quick else "best_of_n" + (f"-seed{seed}" if seed else "")
    (output / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, output / f"{name}.png")
    console.print(f"wrote {output / name}.json and .png")


if __name__ == "__main__":
    typer.run(main)
