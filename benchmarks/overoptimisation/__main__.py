"""Where a reward model over-optimises: gold of best-of-n on samples of one policy, by what uncertainty is subtracted.

    python -m benchmarks.overoptimisation                       # HumanEval, five seeds, 20 minutes each on two cores
    python -m benchmarks.overoptimisation --part qa_feedback    # answers that people compared
    python -m benchmarks.overoptimisation --part all_linear     # LoRA on all linear layers
    python -m benchmarks.overoptimisation --part synthetic      # gold that a model gives, as Gao et al. do
    python -m benchmarks.overoptimisation --part gemma --seeds 1
    python -m benchmarks.overoptimisation --quick               # three minutes; shows that everything runs

A reward model with LoRA learns from pairs of some tasks, a share of whose labels is flipped; the others are for
choosing. HumanEval has 100 samples of CodeGen-16B a task, and gold is whether the task's tests pass; `qa_feedback` has
4 answers a question, and gold is the share of people's comparisons that an answer wins. MiniLM learns, or Gemma 3 270M.
What is tuned is tuned on half of the tasks and reported on the other half, both ways. It needs the samples in the
folder that `BAYESRM_DATA` names. A run that was killed goes on where it was.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bayesrm_fast.cli.terminal import quiet_transformers
from bayesrm_fast.select.estimators import best_of_n_kl, mean_and_standard_error, sizes_up_to
from benchmarks import machine
from benchmarks.data import RESULTS, ROOT
from benchmarks.overoptimisation.measured import measured
from benchmarks.overoptimisation.parts import PARTS, QUICK, PartName
from benchmarks.overoptimisation.rules import Rule, crossed, curve, rules
from benchmarks.overoptimisation.steps import STRUCTURES, Arrays

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
    """A row: its curves by seed, and what its halves chose; of the seeds that have what the rule reads."""
    row: dict[str, Any] = {"seeds": [], "curves": [], "chosen": []}
    for seed, tasks in enumerate(seeds):
        if rule is None:
            found, names = np.stack([curve(None, task) for task in tasks]), list[str]()
        elif rule.reads in tasks[0]:
            found, names = crossed(rule, tasks)
        else:
            continue
        row["seeds"].append(seed)
        row["curves"].append(found)
        row["chosen"].append(names)
    return row


def gains(row: dict[str, Any], base: dict[str, Any], names: list[list[str]]) -> dict[str, float | None]:
    """Gain at the largest n, paired by task: mean, standard error over tasks (of each's seeds' mean), seeds' spread."""
    others = dict(zip(base["seeds"], base["curves"], strict=True))
    by_seed = {seed: (own - others[seed])[:, -1] for seed, own in zip(row["seeds"], row["curves"], strict=True)}
    by_task: dict[str, list[float]] = {}
    for seed, values in by_seed.items():
        for name, value in zip(names[seed], values.tolist(), strict=True):
            by_task.setdefault(name, []).append(value)
    _, error = mean_and_standard_error([float(np.mean(values)) for values in by_task.values()])
    means = [float(one.mean()) for one in by_seed.values()]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return {"gain": float(np.mean(means)), "standard_error": error, "spread_of_seeds": spread}


def main(
    part: Annotated[PartName, typer.Option(help="Which tasks, and which model.")] = PartName.HUMANEVAL,
    quick: Annotated[
        bool, typer.Option(help="Few tasks of HumanEval and one seed; shows that everything runs.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Reward models to train, each on pairs of its own tasks.")] = 5,
    noise: Annotated[float, typer.Option(min=0, max=0.5, help="Share of the labels that are flipped.")] = NOISE,
    further: Annotated[int, typer.Option(help="Seeds with rows of the joint posterior and of virtual adapters.")] = 1,
    ensembles: Annotated[int, typer.Option(help="Seeds with ensembles, which take four more trainings.")] = 1,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
    work: Annotated[Path, typer.Option(help="Folder of what is computed once.")] = ROOT / "build" / "overoptimisation",
) -> None:
    """Train, score and tell."""
    console = Console(width=180)
    quiet_transformers()
    name = "quick" if quick else str(part)
    names: list[list[str]] = []
    tasks: list[list[Arrays]] = []
    for seed in range(1 if quick else seeds):
        experiment = QUICK if quick else PARTS[part]
        of_seed, found = measured(experiment, seed, noise, work / name, seed < further, seed < ensembles)
        names.append([task.name for task in of_seed])
        tasks.append(found)
    rows = {rule.name: summary(rule, tasks) for rule in rules()} | {"oracle": summary(None, tasks)}
    rows = {label: row for label, row in rows.items() if row["seeds"]}
    sizes = sizes_up_to(len(tasks[0][0]["gold"]))
    scale = "--quick" if quick else f"--part {part} --seeds {seeds} --further {further} --ensembles {ensembles}"
    results = {
        "command": f"python -m benchmarks.overoptimisation {scale} --noise {noise:g}",
        "machine": machine.describe(),
        "sizes": sizes,
        "kl": [best_of_n_kl(n) for n in sizes],
        "tasks": [len(one) for one in tasks],
        "lambda_by_evidence": [{name: float(one[0][f"{name}/evidence"]) for name in STRUCTURES} for one in tasks],
        "rows": {
            label: {
                "gold": np.concatenate(row["curves"]).mean(0).round(4).tolist(),
                "gold_by_seed": [one.mean(0).round(4).tolist() for one in row["curves"]],
                "chosen": row["chosen"],
                "gain_over": {base: gains(row, rows[base], names) for base in GAINED_OVER},
            }
            for label, row in rows.items()
        },
    }
    name = f"overoptimisation-{name}-noise{noise:g}"
    (output / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, output / f"{name}.png")
    show(results, console)


def show(results: dict[str, Any], console: Console) -> None:
    """The table."""
    sizes = results["sizes"]
    over = [f"over {base}" for base in results["rows"]["MAP"]["gain_over"]]
    title = "gold of the choice by n; gains at the last n"
    table = Table("rule", "seeds", *(f"{n}" for n in sizes), *over, title=title)
    for name, row in results["rows"].items():
        gained = (f"{one['gain']:+.3f} ± {one['standard_error']:.3f}" for one in row["gain_over"].values())
        table.add_row(name, str(len(row["gold_by_seed"])), *(f"{value:.3f}" for value in row["gold"]), *gained)
    console.print(table)


def draw(results: dict[str, Any], path: Path) -> None:
    """Gold against KL."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axis = figure.subplots()
    beside: dict[str, Any] = {"xytext": (6, -3), "textcoords": "offset points", "fontsize": 8.5}
    ends = sorted(SHOWN, key=lambda name: results["rows"][name]["gold"][-1])
    heights = [results["rows"][name]["gold"][-1] for name in ends]
    least = 0.03 * (max(max(results["rows"][name]["gold"]) for name in SHOWN) - min(heights))
    for below, height in enumerate(heights[1:]):  # no label covers another
        heights[below + 1] = max(height, heights[below] + least)
    for name, height in zip(ends, heights, strict=True):
        gold = results["rows"][name]["gold"]
        colour = f"C{SHOWN.index(name)}"
        width = 2.2 if name == "MAP" or "ggn" in name else 1.3
        axis.plot(results["kl"], gold, "o-", ms=4, lw=width, color=colour)
        axis.annotate(name, (results["kl"][-1], height), color=colour, **beside)
    last = results["sizes"][-1]
    axis.set(xlabel=f"KL of best-of-n to the policy, nats (n = 1 to {last})", ylabel="gold of the choice")
    axis.set_xlim(0, results["kl"][-1] * 1.75)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    typer.run(main)
