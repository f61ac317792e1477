"""What is chosen by, and what it is worth: tuned on one half of the tasks, reported on the other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bayesrm_fast.select.estimators import expected_best_of_n, sizes_up_to
from bayesrm_fast.select.rules import KnownCandidates
from bayesrm_fast.select.tuning import JudgedPrompt, tuned_by_gold
from benchmarks.overoptimisation.caution import TOKENS
from benchmarks.overoptimisation.steps import PRECISIONS, STRUCTURES

Arrays = Mapping[str, np.ndarray]
Score = Callable[[Arrays], np.ndarray]
"""Scores `[U]` of a task's distinct samples, or `[D, U]` of which each draw chooses by itself."""

Choose = Callable[[Sequence[Arrays]], str]
"""From the tasks of a half to the name of a choice."""

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
KINDS = ("absolute", "relative")
OWN = len(PRECISIONS)
"""Place of a posterior's own λ, by evidence."""


@dataclass(frozen=True)
class Rule:
    """A way to choose, with what may be tuned of it.

    Attributes:
        name: of its row.
        choices: scores by a text that says what was chosen.
        choose: which choice a half of the tasks speaks for; None for that with the most gold over tasks and n.
        reads: an array that not every seed has, which the rule needs.
    """

    name: str
    choices: Mapping[str, Score]
    choose: Choose | None = None
    reads: str = "mean"


def rules() -> list[Rule]:
    """All rows but the oracle's."""
    found = [Rule("MAP", {"": lambda task: task["mean"]})]
    for structure in STRUCTURES:
        for kind in KINDS:
            name = f"{structure}, {kind}"
            found.append(Rule(f"{name} std, k = 1, λ by evidence", {"": _less_std(f"{structure}/{kind}", OWN, 1.0)}))
            found.append(Rule(f"{name} std, k tuned", _weights(f"{structure}/{kind}", OWN)))
            found.append(Rule(f"{name} std, k and λ tuned", _grid(structure, kind)))
            found.append(Rule(f"{name} variance, k tuned", _weights(f"{structure}/{kind}", OWN, _less_variance)))
    found.append(Rule("ggn, relative std, k by tune_penalty", _weights("ggn/relative", OWN), _by_tune_penalty))
    for name, label in (("margins", "exact"), ("virtual", "virtual adapters")):
        for kind in KINDS:
            std = f"{name}/{kind}"
            found.append(Rule(f"{label}, {kind} std, k = 1, λ by margins", {"": _less_std(std, 0, 1.0)}, reads=std))
            found.append(Rule(f"{label}, {kind} std, k tuned, λ by margins", _weights(std, 0), reads=std))
    for kind in KINDS:
        found.append(Rule(f"last layer alone, {kind} std, k and λ tuned", _grid("last layer", kind)))
        choices = {f"k = {k:g}": _less_std(f"prior/{kind}", 0, k) for k in (0.0, *(2.0**i for i in range(-12, 7)))}
        found.append(Rule(f"prior alone, {kind}, k tuned", choices))
    found.append(Rule("most probably the best, exact", {"": lambda task: task["best"]}, reads="best"))
    found.append(Rule("Thompson sampling, exact", {"": lambda task: task["draws"]}, reads="draws"))
    for members in (3, 5):
        last = f"member{members - 1}"
        found.append(Rule(f"ensemble of {members}, mean", {"": _ensemble(members, "absolute", _mean)}, reads=last))
        for kind in KINDS:
            name = f"ensemble of {members}, {kind}"
            found.append(Rule(f"{name} worst", {"": _ensemble(members, kind, _worst)}, reads=last))
            choices = {f"k = {k:g}": _ensemble(members, kind, _uncertainty_weighted(k)) for k in WEIGHTS}
            found.append(Rule(f"{name} variance between, k tuned", choices, reads=last))
    # A constant of a prompt changes no choice: relative to the prompt the row would be the same.
    weights = (0.0, *(2.0**i for i in range(-6, 9)))
    found.append(Rule("caution, λ tuned", {f"λ = {weight:g}": _less_caution(0, weight) for weight in weights}))
    choices = {f"λ = {w:g}, {name}": _less_caution(at, w) for at, name in enumerate(TOKENS) for w in weights}
    found.append(Rule("caution, λ and tokens tuned", choices))
    found.append(Rule("MBR", {"": lambda task: task["mbr"]}))
    found.append(
        Rule("exact, relative std, and MBR", {f"β = {b:g}": _with_mbr(b) for b in (1.0, 0.0, 0.25, 0.5, 2.0, 4.0)})
    )
    return found


def _less_std(name: str, at: int, k: float) -> Score:
    return lambda task: task["mean"] - k * task[name][at]


def _less_variance(name: str, at: int, k: float) -> Score:
    return lambda task: task["mean"] - k * task[name][at] ** 2


def _less_caution(at: int, weight: float) -> Score:
    return lambda task: task["mean"] - weight * task["caution"][at]


def _weights(name: str, at: int, less: Callable[[str, int, float], Score] = _less_std) -> dict[str, Score]:
    return {f"k = {k:g}": less(name, at, k) for k in WEIGHTS}


def _grid(structure: str, kind: str) -> dict[str, Score]:
    names = [*(f"λ = {precision:g}" for precision in PRECISIONS), "λ by evidence"]
    return {
        f"k = {k:g}, {name}": _less_std(f"{structure}/{kind}", at, k) for at, name in enumerate(names) for k in WEIGHTS
    }


def _by_tune_penalty(tasks: Sequence[Arrays]) -> str:
    """What the library's `tune_penalty` chooses."""
    judged = []
    for number, task in enumerate(tasks):
        mean, std = (torch.from_numpy(one[task["samples"]]) for one in (task["mean"], task["ggn/relative"][OWN]))
        judged.append(JudgedPrompt(KnownCandidates(mean, std**2), torch.from_numpy(task["gold"]), str(number)))
    return f"k = {tuned_by_gold(judged).k:g}"


def _ensemble(members: int, kind: str, combine: Callable[[np.ndarray], np.ndarray]) -> Score:
    """Of the members' rewards, or of their differences to each member's own mean over the samples."""

    def score(task: Arrays) -> np.ndarray:
        rewards = np.stack([task["mean"], *(task[f"member{i}"] for i in range(1, members))])
        if kind == "relative":
            rewards = rewards - rewards[:, task["samples"]].mean(1, keepdims=True)
        return combine(rewards)

    return score


def _mean(rewards: np.ndarray) -> np.ndarray:
    found: np.ndarray = rewards.mean(0)
    return found


def _worst(rewards: np.ndarray) -> np.ndarray:
    found: np.ndarray = rewards.min(0)
    return found


def _uncertainty_weighted(k: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rewards: rewards.mean(0) - k * rewards.var(0)


def _with_mbr(beta: float) -> Score:
    """Both standardised within the prompt; the relative penalty with k = 1 and λ by evidence."""

    def score(task: Arrays) -> np.ndarray:
        penalised, mbr = _less_std("exact/relative", OWN, 1.0)(task), task["mbr"]
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
    sizes = sizes_up_to(len(gold))
    draws = [task["gold"]] if score is None else np.atleast_2d(score(task))[:, task["samples"]]
    curves = [[expected_best_of_n(torch.from_numpy(one), gold, n) for n in sizes] for one in draws]
    mean: np.ndarray = np.mean(curves, axis=0)
    return mean


def crossed(rule: Rule, tasks: Sequence[Arrays]) -> tuple[np.ndarray, list[str]]:  # shape: (tasks, sizes)
    """Every task's curve by what the other half of the tasks chose; and the two choices."""
    curves = {name: np.stack([curve(score, task) for task in tasks]) for name, score in rule.choices.items()}
    found = np.empty_like(next(iter(curves.values())))
    chosen = []
    for half in (0, 1):
        other = [i for i in range(len(tasks)) if i % 2 != half]
        if rule.choose is None:
            best = max(curves, key=lambda name: curves[name][other, 1:].mean())
        else:
            best = rule.choose([tasks[i] for i in other])
        chosen.append(best)
        found[half::2] = curves[best][half::2]
    return found, chosen
