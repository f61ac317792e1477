"""What the scores of a file are, and what they are worth where somebody has judged the same responses."""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.evaluate.scored_file import KnownOfRow, ScoredFile, ScoredLine
from bayesrm_fast.evaluate.uncertainty import coverage_curves
from bayesrm_fast.fit.reliability import Reliability, reliability
from bayesrm_fast.select.estimators import expected_best_of_n, mean_and_standard_error, sizes_up_to

EXAMPLES = 20
"""Rows that are told in full."""

RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reward alone": lambda mean, std: mean,
    "reward − std": lambda mean, std: mean - std,
}
"""By which the best of n is chosen, k = 1."""


@dataclass(frozen=True)
class GoldCurves:
    """What the best of n is worth to a judge.

    Attributes:
        prompts: that have gold.
        sizes: n, up to the fewest candidates that one of the prompts has.
        gold: of the choice by each of `RULES`, mean over the prompts, by n.
        gain: of the last rule over the first at the largest n.
        gain_error: its standard error over the prompts; infinite for one prompt.
    """

    prompts: int
    sizes: list[int]
    gold: dict[str, list[float]]
    gain: float
    gain_error: float


@dataclass(frozen=True)
class Example:
    """A row that is told in full.

    Attributes:
        number: from 1 on.
        line: its scores.
        known: what the input says of it; None without one.
    """

    number: int
    line: ScoredLine
    known: KnownOfRow | None


@dataclass(frozen=True)
class ScoresReport:
    """Of a scored file.

    Attributes:
        scored: the file.
        mean, std: of all that was scored, `[N]`, float64.
        cut: rows of which `max_length` cut something.
        changed: prompts at which `reward − std` chooses another response than the reward alone; None where a row is no
            prompt with its responses.
        labelled: pairs or steps whose label is known.
        probabilities: what theirs were worth, by `posterior` and by `reward` alone, σ(mean); empty without labels.
        coverage: curves of `coverage_curves`; empty without labels.
        gold: None without gold.
        examples: at most `EXAMPLES`: the prompts whose choice changes; the pairs and steps that were least expected,
            or without labels are least certain.
    """

    scored: ScoredFile
    mean: Tensor
    std: Tensor
    cut: int
    changed: int | None
    labelled: int
    probabilities: dict[str, Reliability]
    coverage: dict[str, list[float]]
    gold: GoldCurves | None
    examples: list[Example]


def scores_report(scored: ScoredFile, known: Iterable[KnownOfRow] | None) -> ScoresReport:
    """All figures of a scored file.

    Args:
        scored: the file.
        known: of each of its rows, as `known_of` gives it; None where its input is not given.
    """
    rows = scored.rows
    urgency = [_urgency(scored, line, None) for line in rows]
    told: dict[int, KnownOfRow] = {}
    golds, happened, margins = [], [], []
    for i, one in enumerate(known or ()):
        urgency[i] = _urgency(scored, rows[i], one.labels)
        told[i] = one
        if len(told) > 2 * EXAMPLES:  # texts of many rows are many
            told = {j: told[j] for j in heapq.nlargest(EXAMPLES, told, key=urgency.__getitem__)}
        if one.gold is not None:
            golds.append((_float64(rows[i].mean), _float64(rows[i].std), _float64(one.gold)))
        if one.labels is not None:
            for label, p, mean in zip(one.labels, rows[i].probability, rows[i].mean, strict=True):
                happened.append(p if label else 1 - p)
                margins.append(mean if label else -mean)
    changed = sum(_is_changed(line) for line in rows) if scored.kind == "responses" else None
    most_urgent = heapq.nlargest(EXAMPLES, range(len(rows)), key=urgency.__getitem__)
    chances, margin = _float64(happened), _float64(margins)
    return ScoresReport(
        scored=scored,
        mean=_float64([value for line in rows for value in line.mean]),
        std=_float64([value for line in rows for value in line.std]),
        cut=sum(line.is_cut for line in rows),
        changed=changed,
        labelled=len(happened),
        probabilities=_probabilities(chances, margin) if happened else {},
        coverage=_coverage(chances, margin) if happened else {},
        gold=_gold_curves(golds) if golds else None,
        examples=[Example(i + 1, rows[i], told.get(i)) for i in most_urgent],
    )


def _float64(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _urgency(scored: ScoredFile, line: ScoredLine, labels: Sequence[bool] | None) -> tuple[float, ...]:
    """The larger, the more it is worth a look."""
    if scored.kind == "responses":
        return (float(_is_changed(line)), max(line.std))
    if labels is None:
        return (-min(abs(p - 0.5) for p in line.probability),)
    return (-min(p if label else 1 - p for label, p in zip(labels, line.probability, strict=True)),)


def _is_changed(line: ScoredLine) -> bool:
    places = range(len(line.mean))
    return max(places, key=line.mean.__getitem__) != max(places, key=lambda i: line.mean[i] - line.std[i])


def _probabilities(happened: Tensor, margin: Tensor) -> dict[str, Reliability]:  # shapes: (M,), (M,)
    return {"posterior": reliability(happened), "reward": reliability(torch.sigmoid(margin))}


def _coverage(happened: Tensor, margin: Tensor) -> dict[str, list[float]]:  # shapes: (M,), (M,)
    orders = {"posterior": torch.maximum(happened, 1 - happened), "margin": margin.abs()}
    return coverage_curves(orders, happened > 0.5)


def _gold_curves(prompts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> GoldCurves:  # shapes of each: (n,), (n,), (n,)
    sizes = sizes_up_to(min(len(gold) for _, _, gold in prompts))
    curves = {
        name: torch.stack(
            [_float64([expected_best_of_n(rule(mean, std), gold, n) for n in sizes]) for mean, std, gold in prompts]
        )
        for name, rule in RULES.items()
    }  # shape of each: (prompts, sizes)
    first, *_, last = curves.values()
    gain, error = mean_and_standard_error((last - first)[:, -1].tolist())
    means = {name: curve.mean(0).tolist() for name, curve in curves.items()}
    return GoldCurves(len(prompts), sizes, means, gain, error)
