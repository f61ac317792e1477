"""Whether the demo's seed is a lucky one: the demo with five seeds, each with its own articles, labels and candidates.

    python -m benchmarks.demo_seeds            # about six minutes on two quiet cores
    python -m benchmarks.demo_seeds --quick    # half a minute; shows that it runs

The demo is made so that its reward model over-optimises. How it is made was chosen on seeds 10 to 12, which are not
reported: the policy that ends with a sentence and strays, the gold, 160 pairs with two labels of five wrong, four
epochs. There, at n = 24, the default gained +.17 and +.28 ± .05 over MAP (seeds 10 and 11). What did not show it: 240
pairs with three labels of ten wrong, +.01 to +.04 ± .04 (MAP falls from n = 8 on, but not below n = 1); 120 pairs for
eight epochs, which learn 92 % of the labels by heart, +.02 ± .06 and ± .02. A gold that wants every word to be the
article's, and at least three of them, which typical samples do not have, gained nothing. After the five seeds had been
seen the prompts were raised from 40, with which they gained +.131 ± .034, for the standard error alone.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bayesrm_fast.cli.terminal import quiet_transformers
from bayesrm_fast.select.estimators import best_of_n_kl, sizes_up_to
from benchmarks import machine
from benchmarks.data import RESULTS
from benchmarks.overoptimisation.__main__ import gains
from demo.experiment import DEFAULT, MAP, Outcome, Scale, minilm, run
from demo.task import Task

QUICK = Scale(pairs=8, epochs=1, prompts=3, candidates=8)


def main(
    quick: Annotated[bool, typer.Option(help="Small; shows that everything runs.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Reward models to train, from seed 0 on.")] = 5,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Run the demo with each seed and tell."""
    console = Console(width=150)
    quiet_transformers()
    scale, seeds = (QUICK, 2) if quick else (Scale(), seeds)
    outcomes = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            outcomes.append(run(Task(seed), minilm(), scale, Path(folder), console))
        told = outcomes[-1].curves
        console.print(f"seed {seed}: MAP {told[MAP].mean(0)[-1]:.3f}, default {told[DEFAULT].mean(0)[-1]:.3f}")
    results = summary(outcomes, scale)
    results["command"] = f"python -m benchmarks.demo_seeds --seeds {seeds}" + " --quick" * quick
    (output / ("demo-quick.json" if quick else "demo.json")).write_text(json.dumps(results, indent=1) + "\n")
    show(results, console)


def summary(outcomes: list[Outcome], scale: Scale) -> dict[str, Any]:
    """Gold by n of every rule, by seed, and gains over MAP at the largest n."""
    seeds = list(range(len(outcomes)))
    rows: dict[str, dict[str, Any]] = {
        name: {"seeds": seeds, "curves": [one.curves[name].numpy() for one in outcomes]} for name in outcomes[0].curves
    }
    prompts = [outcome.prompts for outcome in outcomes]
    sizes = sizes_up_to(scale.candidates)
    return {
        "machine": machine.describe(),
        "scale": vars(scale),
        "sizes": sizes,
        "kl": [best_of_n_kl(n) for n in sizes],
        "lambda_by_evidence": [outcome.rm.fitted.prior_precision for outcome in outcomes],
        "rows": {
            name: {
                "gold": np.concatenate(row["curves"]).mean(0).round(4).tolist(),
                "gold_by_seed": [curves.mean(0).round(4).tolist() for curves in row["curves"]],
                "gain_over_MAP": gains(row, rows[MAP], prompts),
            }
            for name, row in rows.items()
        },
    }


def show(results: dict[str, Any], console: Console) -> None:
    """The table."""
    title = "gold of the choice by n; gain over MAP at the last n"
    table = Table("chosen by", *(f"{n}" for n in results["sizes"]), "gain", "by seed", title=title)
    last = np.array([curve[-1] for curve in results["rows"][MAP]["gold_by_seed"]])
    for name, row in results["rows"].items():
        gain = row["gain_over_MAP"]
        by_seed = np.array([curve[-1] for curve in row["gold_by_seed"]]) - last
        table.add_row(
            name,
            *(f"{value:.3f}" for value in row["gold"]),
            f"{gain['gain']:+.3f} ± {gain['standard_error']:.3f}",
            " ".join(f"{value:+.2f}" for value in by_seed),
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
