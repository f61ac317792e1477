"""Gold quality of best-of-n under MAP rewards, penalised ones and ensembles, on real judged responses.

    python -m benchmarks.best_of_n            # about 40 minutes on two cores
    python -m benchmarks.best_of_n --quick    # a minute, says nothing about quality

Trains a LoRA reward model on AlpacaEval's `train` prompts with each of three seeds, fits every structure of posterior,
and virtual adapters of three ranks on the merged model, and picks among the responses of the `dev` prompts, alone and
with distractors that answer another prompt. The ensemble is the three models.
"""

import copy
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
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
from bayesrm_fast.fit.calibration import calibrate, reliability
from bayesrm_fast.fit.prior import GRID, variance_curve
from bayesrm_fast.model.passes import unit_cotangent
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.posterior.probit import probit_probability
from bayesrm_fast.select.estimators import best_of_n_kl
from bayesrm_fast.sites import Site
from bayesrm_fast.train.adapter import TrainOptions, train_adapter
from benchmarks import machine
from benchmarks.data import RESULTS, embedded_encoder
from benchmarks.estimators import auroc
from benchmarks.gold import (
    CHOSEN,
    POSTERIORS,
    PRECISIONS,
    SIZES,
    STRUCTURES,
    VIRTUAL_RANKS,
    Scored,
    differences,
    gold_table,
)
from benchmarks.judged import DISTRACTORS, alpaca_eval, preference_pairs, with_distractors

TARGETS = ["query", "value"]


@dataclass(frozen=True)
class Scale:
    """How large a run is."""

    seeds: int
    pairs_per_prompt: int
    train_prompts: int
    dev_prompts: int
    candidates: int
    max_length: int
    epochs: float


FULL = Scale(3, pairs_per_prompt=2, train_prompts=240, dev_prompts=60, candidates=57, max_length=128, epochs=2)
QUICK = Scale(2, pairs_per_prompt=1, train_prompts=24, dev_prompts=3, candidates=57, max_length=64, epochs=1)


class Curves:
    """A consumer that gives one pass to the curves of several posteriors.

    A virtual adapter's A begins with that of a smaller rank, so that one pass at the largest rank serves them all.
    """

    gradients_alone = True

    def __init__(self, posteriors: list[Posterior], precisions: list[list[float]]) -> None:
        self.curves = [p.variance_curve_consumer(wanted) for p, wanted in zip(posteriors, precisions, strict=True)]
        self.sites = [{site.name: site for site in posterior.sites} for posterior in posteriors]

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Hand one site on."""
        for curve, sites in zip(self.curves, self.sites, strict=True):
            own = sites[site.name]
            curve.consume(own, p[:, : own.r].contiguous(), q, offsets)


def score_all(
    rm: BayesianRewardModel, sets: list[dict[str, Any]], posteriors: list[Posterior]
) -> tuple[np.ndarray, np.ndarray]:
    """Means `[N]` and variances `[posteriors, L, N]` of all candidates, from one pass."""
    prompts = [s["prompt"] for s in sets for _ in s["texts"]]
    rows = rm.tokenize(prompts, [text for s in sets for text in s["texts"]])
    precisions = [[posterior.prior_precision, *PRECISIONS] for posterior in posteriors]
    mean = np.zeros(len(rows))
    variance = np.zeros((len(posteriors), len(precisions[0]), len(rows)))
    for batch in rm.passes().over(rows, unit_cotangent, lambda: Curves(posteriors, precisions)):
        mean[batch.positions] = batch.rewards.numpy()
        for one, curve in zip(variance, batch.consumer.curves, strict=True):
            one[:, batch.positions] = curve.variance.numpy()
    return mean, variance


def draw(results: dict[str, Any], path: Path) -> None:
    """Gold against n, with and without distractors; bands are standard errors over the prompts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    colours = ("#444444", "#1b7fbd", "#d1495b", "#e09f3e", "#7b4fa3", "#2e9e6b")
    for axis, key, title in zip(
        axes,
        ("without_distractors", "with_distractors"),
        ("judged responses only", f"with {DISTRACTORS} off-prompt distractors"),
        strict=True,
    ):
        for (name, label), colour in zip(SHOWN.items(), colours, strict=True):
            rows = results[key][name]
            n = [row["n"] for row in rows]
            gold = np.array([row["gold"] for row in rows])
            error = np.array([row["standard_error"] for row in rows])
            axis.plot(n, gold, marker="o", ms=4, color=colour, label=label)
            axis.fill_between(n, gold - error, gold + error, color=colour, alpha=0.1, linewidth=0)
        axis.set(title=title, xscale="log", xlabel="n, candidates to choose among")
        axis.set_xticks(SIZES, [str(n) for n in SIZES])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("gold of the choice (GPT-4 preference)")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


SHOWN = {
    "MAP": "MAP reward",
    "ggn, std k=2, λ=100": "ggn, mean − 2 std, λ = 100",
    "virtual 8, std k=2, λ=100": "no LoRA: virtual adapters, r = 8, the same",
    "ensemble, uncertainty k=0.5": "ensemble of 3, mean − ½ variance between",
    "ensemble + ggn, std k=1, λ=100": "ensemble of 3 with ggn, mean − 1 std, λ = 100",
    "gold oracle": "gold oracle",
}
COMPARED = [
    *(f"{p}, std k=1, λ={CHOSEN}" for p in POSTERIORS),
    *(f"{p}, std k=2, λ=100" for p in POSTERIORS),
    "ensemble, mean",
    "ensemble, worst",
    "ensemble, uncertainty k=0.5",
    f"ensemble + ggn, std k=1, λ={CHOSEN}",
    "ensemble + ggn, std k=1, λ=100",
    "ensemble + ggn, std k=2, λ=100",
]


def held_out_figures(names: Sequence[str], models: list[BayesianRewardModel], pairs: list[Any]) -> dict[str, Any]:
    """Accuracy, NLL, Brier and ECE of held-out pairs: with the chosen λ, and calibrated, each half by the other."""

    def figures(one: Any) -> dict[str, float]:
        return {name: getattr(one, name) for name in ("accuracy", "nll", "brier", "ece")}

    found: dict[str, Any] = {"count": len(pairs)}
    for name, rm in zip(names, models, strict=True):
        tokenized = rm.tokenize_pairs(pairs)
        choices = [*GRID, rm.fitted.prior_precision]
        difference, variance = variance_curve(rm.passes(), tokenized, rm.fitted, choices, None)
        if "MAP" not in found:
            plain = calibrate(difference, torch.zeros(1, len(difference)), [1.0], torch.sigmoid(difference))
            found["MAP"] = figures(reliability(torch.sigmoid(difference)))
            found["MAP, temperature"] = figures(plain.after) | {"temperature": plain.temperature}
        at_chosen = probit_probability(difference, variance[-1])
        chosen = calibrate(difference, variance[:-1], list(GRID), at_chosen)
        found[f"{name}, λ {CHOSEN}"] = figures(chosen.before) | {"prior_precision": choices[-1]}
        found[f"{name}, calibrated"] = figures(chosen.after) | {
            "prior_precision": chosen.prior_precision,
            "temperature": chosen.temperature,
        }
    return found


def directions(model: BayesianRewardModel) -> list[Tensor]:
    """A `[r, d_in]` of each virtual adapter."""
    assert model.virtual is not None
    return [tap.down for tap in model.virtual.taps]


def one_seed(
    scale: Scale, seed: int, pairs: list[Any], held_out: list[Any], sets: list[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Train, fit, score; means `[N]`, variances `[posteriors, L, N]` and what there is to tell."""
    seconds = {}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(
            target_modules=TARGETS,
            epochs=scale.epochs,
            learning_rate=1e-3,
            max_length=scale.max_length,
            seed=seed,
        )
        train_adapter(embedded_encoder(), pairs, folder, options)
        seconds["train"] = time.perf_counter() - start
        rm = BayesianRewardModel.from_pretrained(folder, device="cpu", max_length=scale.max_length)
    merged = copy.deepcopy(rm.model).merge_and_unload()
    models = [copy.copy(rm) for _ in STRUCTURES]
    models += [
        BayesianRewardModel(
            merged, rm.tokenizer, virtual_rank=rank, virtual_targets=TARGETS, max_length=scale.max_length
        )
        for rank in VIRTUAL_RANKS
    ]
    for name, model in zip(POSTERIORS, models, strict=True):
        start = time.perf_counter()
        model.fit(pairs, structure=name if name in STRUCTURES else "ggn")
        seconds[f"fit {name}"] = time.perf_counter() - start
    for model in models[len(STRUCTURES) :]:
        for rows, more in zip(directions(model), directions(models[-1]), strict=True):
            torch.testing.assert_close(rows.abs(), more[: len(rows)].abs())  # what `Curves` rests on
    start = time.perf_counter()
    fitted = [model.fitted for model in models]
    mean, variance = score_all(models[0], sets, fitted[: len(STRUCTURES)])
    merged_mean, virtual_variance = score_all(models[-1], sets, fitted[len(STRUCTURES) :])
    seconds["score"] = time.perf_counter() - start
    told = {
        "prior_precision": {p: model.fitted.prior_precision for p, model in zip(POSTERIORS, models, strict=True)},
        "largest_difference_of_means_once_merged": float(np.abs(mean - merged_mean).max()),
        "held_out_pairs": held_out_figures(POSTERIORS, models, held_out),
        "seconds": seconds,
    }
    return mean, np.concatenate([variance, virtual_variance]), told


def main(
    quick: Annotated[bool, typer.Option(help="A small run that only shows that everything works.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the JSON file and the figure.")] = RESULTS,
) -> None:
    """Train, fit, choose; print the tables and write the JSON file and the figure."""
    console = Console(width=140)
    quiet_transformers()
    scale = QUICK if quick else FULL
    train, dev = alpaca_eval("train")[: scale.train_prompts], alpaca_eval("dev")[: scale.dev_prompts]
    pairs = preference_pairs(train, scale.pairs_per_prompt, seed=0)
    held_out = preference_pairs(dev, scale.pairs_per_prompt, seed=1)
    sets = with_distractors(dev, scale.candidates, seed=0)
    means, variances, told = [], [], []
    for seed in range(scale.seeds):
        mean, variance, about = one_seed(scale, seed, pairs, held_out, sets)
        console.print(f"seed {seed}:", about["prior_precision"], about["seconds"])
        means.append(mean)
        variances.append(variance)
        told.append(about)
    bounds = np.cumsum([0] + [len(s["texts"]) for s in sets])
    every_mean, every_variance = np.stack(means), np.stack(variances)
    scored = [
        Scored(every_mean[:, a:b], every_variance[..., a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    results: dict[str, Any] = {
        "command": "python -m benchmarks.best_of_n" + (" --quick" if quick else ""),
        "machine": machine.describe(),
        "scale": vars(scale),
        "pairs": len(pairs),
        "kl": {n: best_of_n_kl(n) for n in SIZES},
        "seeds": told,
        "without_distractors": gold_table(sets, scored, distractors=False),
        "with_distractors": gold_table(sets, scored, distractors=True),
        "gain_over_map_with_distractors": differences(sets, scored, COMPARED, distractors=True),
        "gain_over_map_without_distractors": differences(sets, scored, COMPARED, distractors=False),
        "auroc_of_std": {
            f"{posterior}, λ={precision:g}": float(
                np.mean(
                    [
                        auroc(one.variance[seed, s, i + 1, : c["own"]], one.variance[seed, s, i + 1, c["own"] :])
                        for seed in range(scale.seeds)
                        for c, one in zip(sets, scored, strict=True)
                    ]
                )
            )
            for s, posterior in enumerate(POSTERIORS)
            for i, precision in enumerate(PRECISIONS)
        },
    }
    for key in ("without_distractors", "with_distractors"):
        table = Table("rule", *(f"n={n}" for n in SIZES), "seeds at 56", title=f"gold, {key.replace('_', ' ')}")
        for name in ["MAP", *COMPARED, "gold oracle"]:
            rows = results[key][name]
            table.add_row(
                name, *(f"{row['gold']:.3f}" for row in rows), " ".join(f"{g:.3f}" for g in rows[-1]["by_seed"])
            )
        console.print(table)
    console.print("gain over MAP, with distractors, at n = 56:", results["gain_over_map_with_distractors"])
    table = Table("held-out pairs", "accuracy", "NLL", "Brier", "ECE", title="seed 0")
    for name, row in told[0]["held_out_pairs"].items():
        if name != "count":
            table.add_row(name, *(f"{row[key]:.3f}" for key in ("accuracy", "nll", "brier", "ece")))
    console.print(table)
    console.print("AUROC of the std, own responses against distractors:", results["auroc_of_std"])

    name = "best_of_n-quick" if quick else "best_of_n"
    (output / f"{name}.json").write_text(json.dumps(results) + "\n")
    draw(results, output / f"{name}.png")
    console.print(f"wrote {output / name}.json and .png")


if __name__ == "__main__":
    typer.run(main)
