"""What is chosen by, and what it is worth: tuned on one half of the tasks, reported on the other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bayesrm_fast.select.estimators import expected_best_of_n, sizes_up_to
from benchmarks.overoptimisation.measured import PRECISIONS

Arrays = Mapping[str, np.ndarray]
Score = Callable[[Arrays], np.ndarray]
"""Scores `[U]` of a task's distinct samples."""

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
OWN = len(PRECISIONS)
"""Place of a posterior's own λ, by evidence."""


@dataclass(frozen=True)
class Rule:
    """A way to choose, with what may be tuned of it; the first choice is the one that is not tuned.

    Attributes:
        name: of its row.
        choices: scores by a text that says what was chosen.
    """

    name: str
    choices: Mapping[str, Score]


def rules() -> list[Rule]:
    """All rows but the oracle's."""
    found = [Rule("MAP", {"": lambda task: task["mean"]})]
    for structure in ("exact", "ggn", "kfac", "ekfac"):
        for kind in ("absolute", "relative"):
            name = f"{structure}, {kind} std"
            found.append(Rule(f"{name}, k = 1, λ by evidence", {"": _penalised(structure, kind, OWN, 1.0)}))
            found.append(Rule(f"{name}, k tuned", {f"k = {k:g}": _penalised(structure, kind, OWN, k) for k in WEIGHTS}))
            found.append(Rule(f"{name}, k and λ tuned", _grid(structure, kind)))
    for kind in ("absolute", "relative"):
        found.append(Rule(f"last layer alone, {kind} std, k and λ tuned", _grid("last layer", kind)))
        prior = {f"k = {k:g}": _prior(kind, k) for k in (0.0, *(2.0**i for i in range(-12, 7)))}
        found.append(Rule(f"prior alone, {kind}, k tuned", prior))
    found.append(Rule("MBR", {"": lambda task: task["mbr"]}))
    found.append(
        Rule("exact, relative std, and MBR", {f"β = {b:g}": _with_mbr(b) for b in (1.0, 0.0, 0.25, 0.5, 2.0, 4.0)})
    )
    return found


def _penalised(structure: str, kind: str, at: int, k: float) -> Score:
    return lambda task: task["mean"] - k * task[f"{structure}/{kind}"][at]


def _grid(structure: str, kind: str) -> dict[str, Score]:
    names = [*(f"λ = {precision:g}" for precision in PRECISIONS), "λ by evidence"]
    return {f"k = {k:g}, {name}": _penalised(structure, kind, at, k) for at, name in enumerate(names) for k in WEIGHTS}


def _prior(kind: str, k: float) -> Score:
    return lambda task: task["mean"] - k * task[f"prior/{kind}"][0]


def _with_mbr(beta: float) -> Score:
    """Both standardised within the prompt; the relative penalty with k = 1 and λ by evidence."""

    def score(task: Arrays) -> np.ndarray:
        penalised, mbr = _penalised("exact", "relative", OWN, 1.0)(task), task["mbr"]
        whole: np.ndarray = _standardised(penalised, task) + beta * _standardised(mbr, task)
        return whole

    return score


def _standardised(values: np.ndarray, task: Arrays) -> np.ndarray:
    of_samples = values[task["samples"]]
    spread: np.ndarray = (values - of_samples.mean()) / max(of_samples.std(), 1e-12)
    return spread


def curve(score: Score | None, task: Arrays) -> np.ndarray:  # shape: (sizes,)
    """Expected gold of best-of-n at every size; the oracle's for None."""
    gold = torch.from_numpy(task["gold"])
    scores = gold if score is None else torch.from_numpy(score(task)[task["samples"]])
    return np.array([expected_best_of_n(scores, gold, n) for n in sizes_up_to(len(gold))])


def crossed(rule: Rule, tasks: Sequence[Arrays]) -> tuple[np.ndarray, list[str]]:  # shape: (tasks, sizes)
    """Every task's curve by what the other half of the tasks chose; and the two choices.

    A half chooses by the mean over its tasks and over n.
    """
    curves = {name: np.stack([curve(score, task) for task in tasks]) for name, score in rule.choices.items()}
    found = np.empty_like(next(iter(curves.values())))
    chosen = []
    for half in (0, 1):
        other = [i for i in range(len(tasks)) if i % 2 != half]
        best = max(curves, key=lambda name: curves[name][other, 1:].mean())
        chosen.append(best)
        found[half::2] = curves[best][half::2]
    return found, chosen
