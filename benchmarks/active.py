"""What chosen labels are worth: accuracy on held-out pairs by how many labels there are, and how they were chosen.

    python -m benchmarks.active            # about 40 minutes of one core
    python -m benchmarks.active --quick    # half a minute; shows that everything runs

Pairs of judged AlpacaEval responses whose gold differs by at least `benchmarks.judged.GAP`; the held-out ones are of
other prompts. MiniLM with LoRA is trained on the same random labels for every strategy, then again and again from the
base on all that the strategy has asked for, each round's batch chosen by the model of the round before.
"""

import json
import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.cli.terminal import quiet_transformers
from bayesrm_fast.select.active import Strategy
from bayesrm_fast.select.estimators import mean_and_standard_error
from bayesrm_fast.train.adapter import TrainOptions, train_adapter
from benchmarks import machine
from benchmarks.data import RESULTS, embedded_encoder
from benchmarks.judged import alpaca_eval, preference_pairs

TARGETS = ["query", "value"]
STRATEGIES: tuple[Strategy, ...] = ("random", "uncertainty", "information")

Pairs = list[dict[str, str]]


@dataclass(frozen=True)
class Scale:
    """How large a run is: labels are those of the common start, and then after every round."""

    seeds: int
    pool_prompts: int
    pool_pairs_per_prompt: int
    held_out_prompts: int
    held_out_pairs_per_prompt: int
    labels: tuple[int, ...]
    max_length: int
    epochs: float


FULL = Scale(3, 240, 6, 120, 5, labels=(50, 100, 200, 400), max_length=64, epochs=2)
QUICK = Scale(1, 10, 2, 5, 2, labels=(4, 8), max_length=32, epochs=1)


@dataclass(frozen=True)
class Round:
    """A model of so many labels.

    Attributes:
        labels: that it has seen.
        prompts: of those labels.
        right: of every held-out prompt, the share of its pairs that are ranked right.
    """

    labels: int
    prompts: int
    right: dict[str, float]

    @property
    def accuracy(self) -> float:
        """Mean over the held-out prompts, which have equally many pairs but for a few."""
        return float(np.mean(list(self.right.values())))


def trained(labelled: Pairs, scale: Scale, seed: int) -> BayesianRewardModel:
    """A reward model of these labels, from the base on, with its posterior."""
    options = TrainOptions(
        target_modules=TARGETS, epochs=scale.epochs, learning_rate=1e-3, max_length=scale.max_length, seed=seed
    )
    with tempfile.TemporaryDirectory() as folder:
        train_adapter(embedded_encoder(), labelled, folder, options)
        rm = BayesianRewardModel.from_pretrained(folder, device="cpu", max_length=scale.max_length)
    return rm.fit(labelled)


def told(rm: BayesianRewardModel, labelled: Pairs, held_out: Pairs) -> Round:
    """How a model of these labels ranks the held-out pairs."""
    prompts = [pair["prompt"] for pair in held_out]
    better, worse = (rm.rewards(prompts, [pair[side] for pair in held_out]) for side in ("chosen", "rejected"))
    right: dict[str, list[bool]] = {}
    for prompt, is_right in zip(prompts, (better > worse).tolist(), strict=True):
        right.setdefault(prompt, []).append(is_right)
    shares = {prompt: float(np.mean(own)) for prompt, own in right.items()}
    return Round(len(labelled), len({pair["prompt"] for pair in labelled}), shares)


def one_seed(scale: Scale, seed: int, console: Console) -> dict[str, list[Round]]:
    """Rounds of every strategy."""
    rows = alpaca_eval("train")
    random.Random(seed).shuffle(rows)
    pool = preference_pairs(rows[: scale.pool_prompts], scale.pool_pairs_per_prompt, seed)
    others = rows[scale.pool_prompts :][: scale.held_out_prompts]
    held_out = preference_pairs(others, scale.held_out_pairs_per_prompt, seed)
    start = random.Random(seed).sample(pool, scale.labels[0])
    first = trained(start, scale, seed)
    beginning = told(first, start, held_out)
    found: dict[str, list[Round]] = {}
    for strategy in STRATEGIES:
        rm, labelled, rounds = first, list(start), [beginning]
        for labels in scale.labels[1:]:
            left = [pair for pair in pool if pair not in labelled]
            batch = rm.select_pairs(left, labels - len(labelled), strategy=strategy, seed=seed)
            labelled += [left[one.row] for one in batch.pairs]
            rm = trained(labelled, scale, seed)
            rounds.append(told(rm, labelled, held_out))
        found[strategy] = rounds
        console.print(f"seed {seed}, {strategy}:", ", ".join(f"{one.labels}: {one.accuracy:.3f}" for one in rounds))
    return found


def summary(seeds: list[dict[str, list[Round]]], scale: Scale) -> dict[str, Any]:
    """Accuracy by strategy and labels, and its gain over random labels, by seeds and by held-out prompts."""
    results: dict[str, Any] = {"scale": vars(scale), "strategies": {}}
    for strategy in STRATEGIES:
        rows = {}
        for number, labels in enumerate(scale.labels):
            own = [seed[strategy][number] for seed in seeds]
            control = [seed["random"][number] for seed in seeds]
            accuracy, error = mean_and_standard_error([one.accuracy for one in own])
            gains = [one.accuracy - other.accuracy for one, other in zip(own, control, strict=True)]
            gain, gain_error = mean_and_standard_error(gains)
            by_prompt: dict[str, list[float]] = {}
            for one, other in zip(own, control, strict=True):
                for prompt, right in one.right.items():
                    by_prompt.setdefault(prompt, []).append(right - other.right[prompt])
            _, over_prompts = mean_and_standard_error([float(np.mean(own)) for own in by_prompt.values()])
            rows[str(labels)] = {
                "accuracy": accuracy,
                "standard_error_over_seeds": error,
                "by_seed": [one.accuracy for one in own],
                "prompts_of_the_labels": float(np.mean([one.prompts for one in own])),
                "gain_over_random": gain,
                "gain_standard_error_over_seeds": gain_error,
                "gain_standard_error_over_prompts": over_prompts,
            }
        results["strategies"][strategy] = rows
    return results


def draw(results: dict[str, Any], path: Path) -> None:
    """Accuracy by labels, a line for each strategy with its standard error over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for (strategy, rows), marker in zip(results["strategies"].items(), "os^", strict=True):
        accuracy = [row["accuracy"] for row in rows.values()]
        error = [row["standard_error_over_seeds"] for row in rows.values()]
        axes.errorbar([int(n) for n in rows], accuracy, error, marker=marker, capsize=3, label=strategy)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks := results["scale"]["labels"], [str(n) for n in ticks])
    axes.set_xlabel("labelled pairs")
    axes.set_ylabel("accuracy on held-out pairs")
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(
    quick: Annotated[bool, typer.Option(help="Small; shows that everything runs.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many, from 0 on.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Label, train, select and tell."""
    quiet_transformers()
    console = Console(width=140)
    scale = QUICK if quick else FULL
    scale = replace(scale, seeds=seeds or scale.seeds)
    found = [one_seed(scale, seed, console) for seed in range(scale.seeds)]
    results = {
        "command": "python -m benchmarks.active" + " --quick" * quick,
        "machine": machine.describe(),
        **summary(found, scale),
    }
    stem = f"active{'-quick' * quick}"
    (output / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, output / f"{stem}.png")
    table = Table("labels", *STRATEGIES, title=f"Accuracy on held-out pairs, {scale.seeds} seeds (gain over random)")
    for labels in scale.labels:
        cells = [results["strategies"][strategy][str(labels)] for strategy in STRATEGIES]
        table.add_row(
            str(labels),
            *(
                f"{one['accuracy']:.3f} ± {one['standard_error_over_seeds']:.3f} ({one['gain_over_random']:+.3f} ± "
                f"{one['gain_standard_error_over_prompts']:.3f})"
                for one in cells
            ),
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
