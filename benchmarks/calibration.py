"""What probabilities of held-out pairs are worth, by each posterior, before and after `calibrate`.

    python -m benchmarks.calibration            # about 20 minutes on two cores
    python -m benchmarks.calibration --quick    # a minute; shows that everything runs

MiniLM with LoRA learns from pairs of judged AlpacaEval responses, with each of three seeds; every structure is fitted,
and `ggn` over virtual adapters of the merged model. Half of the held-out pairs is calibrated by the other.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.cli.terminal import quiet_transformers
from bayesrm_fast.fit.calibration import calibrate
from bayesrm_fast.fit.prior import GRID, variance_curve
from bayesrm_fast.fit.reliability import Reliability, reliability
from bayesrm_fast.posterior.probit import probit_probability
from bayesrm_fast.train.adapter import TrainOptions, train_adapter
from benchmarks import machine
from benchmarks.data import RESULTS, embedded_encoder
from benchmarks.judged import alpaca_eval, preference_pairs

TARGETS = ["query", "value"]
STRUCTURES = ("kfac", "ekfac", "ggn")
FIGURES = ("accuracy", "nll", "brier", "ece")

Row = dict[str, float]


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
QUICK = Scale(1, pairs_per_prompt=1, train_prompts=24, dev_prompts=3, candidates=57, max_length=64, epochs=1)


def figures(one: Reliability) -> Row:
    """Accuracy, NLL in nats, Brier score and ECE."""
    return {name: getattr(one, name) for name in FIGURES}


def held_out_figures(rm: BayesianRewardModel, name: str, pairs: list[Any]) -> dict[str, Row]:
    """Rows of one posterior, and of the reward alone: by the λ of the fit, and calibrated, each half by the other."""
    precisions = [*GRID, rm.fitted.prior_precision]
    difference, variance = variance_curve(rm.passes(), rm.tokenize_pairs(pairs), rm.fitted, precisions, None)
    sure = torch.sigmoid(difference)
    tempered = calibrate(difference, torch.zeros(1, len(difference)), [1.0], sure)
    found = calibrate(difference, variance[:-1], list(GRID), probit_probability(difference, variance[-1]))
    return {
        "MAP": figures(reliability(sure)),
        "MAP, temperature": figures(tempered.after),
        f"{name}, λ of the fit": figures(found.before),
        f"{name}, calibrated": figures(found.after),
    }


def one_seed(scale: Scale, seed: int, pairs: list[Any], held_out: list[Any]) -> dict[str, Row]:
    """Train, fit and tell, row by row."""
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(
            target_modules=TARGETS, epochs=scale.epochs, learning_rate=1e-3, max_length=scale.max_length, seed=seed
        )
        train_adapter(embedded_encoder(), pairs, folder, options)
        rm = BayesianRewardModel.from_pretrained(folder, device="cpu", max_length=scale.max_length)
    rows: dict[str, Row] = {}
    for structure in STRUCTURES:
        rows |= held_out_figures(rm.fit(pairs, structure=structure), structure, held_out)
    merged = BayesianRewardModel(
        rm.model.merge_and_unload(),
        rm.tokenizer,
        virtual_rank=8,
        virtual_targets=TARGETS,
        max_length=scale.max_length,
    )
    return rows | held_out_figures(merged.fit(pairs), "virtual adapters, r = 8", held_out)


def main(
    quick: Annotated[bool, typer.Option(help="Small; shows that everything runs.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Train, fit, calibrate and tell."""
    quiet_transformers()
    scale = QUICK if quick else FULL
    pairs = preference_pairs(alpaca_eval("train")[: scale.train_prompts], scale.pairs_per_prompt, seed=0)
    dev = alpaca_eval("dev")[: scale.dev_prompts]
    held_out = preference_pairs(dev, scale.pairs_per_prompt, seed=1)
    seeds = [one_seed(scale, seed, pairs, held_out) for seed in range(scale.seeds)]
    rows = {
        row: {figure: float(np.mean([seed[row][figure] for seed in seeds])) for figure in FIGURES} for row in seeds[0]
    }
    results = {
        "command": "python -m benchmarks.calibration" + " --quick" * quick,
        "machine": machine.describe(),
        "scale": vars(scale),
        "held_out_pairs": len(held_out),
        "rows": rows,
        "by_seed": seeds,
    }
    (output / f"calibration{'-quick' * quick}.json").write_text(json.dumps(results, indent=1) + "\n")
    table = Table("", *FIGURES, title=f"{len(held_out)} held-out pairs, mean of {scale.seeds} seeds")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[figure]:.3f}" for figure in FIGURES))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
