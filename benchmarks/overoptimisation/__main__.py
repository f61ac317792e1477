"""Where a reward model over-optimises: gold of best-of-n on samples of one policy, by what uncertainty is subtracted.

    python -m benchmarks.overoptimisation                    # all seeds, about 12 minutes each on two quiet cores
    python -m benchmarks.overoptimisation --seeds 2          # fewer; what is there already is not computed again
    python -m benchmarks.overoptimisation --quick            # two minutes; shows that everything runs

HumanEval tasks with 100 samples of CodeGen-16B each, gold is whether the task's tests pass. MiniLM with LoRA learns
from pairs of 45 tasks, a share of whose labels is flipped; the others are for choosing. What is tuned is tuned on half
of them and reported on the other half, both ways. It needs the samples in the folder that `BAYESRM_DATA` names.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bayesrm_fast.cli.terminal import progress_bar, quiet_transformers
from bayesrm_fast.select.estimators import best_of_n_kl, mean_and_standard_error, sizes_up_to
from benchmarks import machine
from benchmarks.data import RESULTS, ROOT
from benchmarks.overoptimisation.measured import measured
from benchmarks.overoptimisation.rules import Rule, crossed, curve, rules

FULL = {"training_tasks": 45, "test_tasks": None, "epochs": 3, "max_length": 160}
QUICK = {"training_tasks": 6, "test_tasks": 6, "epochs": 1, "max_length": 48}
NOISE = 0.25
SHOWN = (
    "MAP",
    "exact, absolute std, k tuned",
    "ggn, relative std, k = 1, λ by evidence",
    "prior alone, relative, k tuned",
    "MBR",
)
GAINED_OVER = ("MAP", "prior alone, relative, k tuned", "MBR")


def summary(rule: Rule | None, seeds: list[list[Any]]) -> dict[str, Any]:
    """A row: its curves by seed, and what its halves chose."""
    curves, chosen = [], []
    for tasks in seeds:
        if rule is None:
            curves.append(np.stack([curve(None, task) for task in tasks]))
        else:
            found, names = crossed(rule, tasks)
            curves.append(found)
            chosen.append(names)
    return {"curves": curves, "chosen": chosen}


def gains(row: dict[str, Any], base: dict[str, Any], names: list[list[str]]) -> dict[str, float | None]:
    """Gain at the largest n, paired by task: mean, standard error over tasks (of each's seeds' mean), seeds' spread."""
    by_seed = [(own - other)[:, -1] for own, other in zip(row["curves"], base["curves"], strict=True)]
    by_task: dict[str, list[float]] = {}
    for tasks, values in zip(names, by_seed, strict=True):
        for name, value in zip(tasks, values.tolist(), strict=True):
            by_task.setdefault(name, []).append(value)
    _, error = mean_and_standard_error([float(np.mean(values)) for values in by_task.values()])
    means = [float(one.mean()) for one in by_seed]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return {"gain": float(np.mean(means)), "standard_error": error, "spread_of_seeds": spread}


def main(
    quick: Annotated[bool, typer.Option(help="Small; shows that everything runs.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Reward models to train, each on pairs of its own tasks.")] = 5,
    noise: Annotated[float, typer.Option(min=0, max=0.5, help="Share of the labels that are flipped.")] = NOISE,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
    work: Annotated[Path, typer.Option(help="Folder of what is computed once.")] = ROOT / "build" / "overoptimisation",
) -> None:
    """Train, score and tell."""
    console = Console(width=170)
    quiet_transformers()
    work = work / "quick" if quick else work
    work.mkdir(parents=True, exist_ok=True)
    scale = QUICK if quick else FULL
    seeds = 1 if quick else seeds
    names, tasks, precisions = [], [], []
    for seed in range(seeds):
        with progress_bar(f"seed {seed}", console) as tell:
            of_seed, found, chosen = measured(seed, noise, scale, work, tell)
        names.append([task.name for task in of_seed])
        tasks.append(found)
        precisions.append(chosen)
    rows = {rule.name: summary(rule, tasks) for rule in rules()} | {"oracle": summary(None, tasks)}
    sizes = sizes_up_to(len(tasks[0][0]["gold"]))
    results = {
        "command": f"python -m benchmarks.overoptimisation --seeds {seeds} --noise {noise:g}" + " --quick" * quick,
        "machine": machine.describe(),
        "sizes": sizes,
        "kl": [best_of_n_kl(n) for n in sizes],
        "tasks": [len(one) for one in tasks],
        "lambda_by_evidence": precisions,
        "rows": {
            name: {
                "gold": np.concatenate(row["curves"]).mean(0).round(4).tolist(),
                "gold_by_seed": [one.mean(0).round(4).tolist() for one in row["curves"]],
                "chosen": row["chosen"],
                "gain_over": {base: gains(row, rows[base], names) for base in GAINED_OVER},
            }
            for name, row in rows.items()
        },
    }
    name = f"overoptimisation-noise{noise:g}" + "-quick" * quick
    (output / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, output / f"{name}.png")
    show(results, console)


def show(results: dict[str, Any], console: Console) -> None:
    """The table."""
    sizes = results["sizes"]
    over = [f"over {base}" for base in results["rows"]["MAP"]["gain_over"]]
    table = Table("rule", *(f"{n}" for n in sizes), *over, title="gold of the choice by n; gains at the last n")
    for name, row in results["rows"].items():
        gained = (f"{one['gain']:+.3f} ± {one['standard_error']:.3f}" for one in row["gain_over"].values())
        table.add_row(name, *(f"{value:.3f}" for value in row["gold"]), *gained)
    console.print(table)


def draw(results: dict[str, Any], path: Path) -> None:
    """Gold against KL."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axis = figure.subplots()
    beside: dict[str, Any] = {"xytext": (6, -3), "textcoords": "offset points", "fontsize": 8.5}
    for name in SHOWN:
        gold = results["rows"][name]["gold"]
        (line,) = axis.plot(results["kl"], gold, "o-", ms=4, lw=2.2 if name == "MAP" or "ggn" in name else 1.3)
        axis.annotate(name, (results["kl"][-1], gold[-1]), color=line.get_color(), **beside)
    axis.set(xlabel="KL of best-of-n to the policy, nats (n = 1 to 100)", ylabel="share of right answers")
    axis.set_xlim(0, results["kl"][-1] * 1.75)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    typer.run(main)
