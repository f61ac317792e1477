"""Every rule's choice among the best of n, and what it is worth to the judge."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bayesrm_fast.select.estimators import expected_best_of_n

SIZES = (1, 2, 4, 8, 16, 32, 56)
STRUCTURES = ("kfac", "ekfac", "ggn")
VIRTUAL_RANKS = (4, 8, 32)  # the largest last
POSTERIORS = (*STRUCTURES, *(f"virtual {rank}" for rank in VIRTUAL_RANKS))
"""Over the LoRA weights, and ggn over virtual adapters of the merged model."""

CHOSEN = "chosen"
"""λ by evidence for LoRA, by margins for virtual adapters."""

PRECISIONS = (1.0, 10.0, 100.0, 1000.0)
STD_WEIGHTS = (0.5, 1.0, 2.0, 4.0)
VARIANCE_WEIGHTS = (0.5, 2.0)

Choice = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Scores `[n]` from every seed's means `[S, n]` and variances `[S, posteriors, L, n]`."""


@dataclass(frozen=True)
class Scored:
    """One prompt's candidates by every seed.

    Attributes:
        mean: `[S, n]`.
        variance: `[S, posteriors, L, n]`, at the chosen λ and at `PRECISIONS`.
    """

    mean: np.ndarray
    variance: np.ndarray


def rules(seed: int) -> dict[str, Choice]:
    """How one seed's model may choose."""
    found: dict[str, Choice] = {"MAP": lambda mean, variance: mean[seed]}
    for s, posterior in enumerate(POSTERIORS):
        for i, precision in enumerate([CHOSEN, *(f"{p:g}" for p in PRECISIONS)]):
            for k in STD_WEIGHTS:
                found[f"{posterior}, std k={k:g}, λ={precision}"] = lambda m, v, s=s, i=i, k=k: (
                    m[seed] - k * np.sqrt(v[seed, s, i])
                )
            for k in VARIANCE_WEIGHTS:
                found[f"{posterior}, variance k={k:g}, λ={precision}"] = lambda m, v, s=s, i=i, k=k: (
                    m[seed] - k * v[seed, s, i]
                )
    return found


def ensemble_rules() -> dict[str, Choice]:
    """How all seeds together may choose: Coste et al.'s objectives, and the mixture of the Laplace posteriors."""
    found: dict[str, Choice] = {
        "ensemble, mean": lambda m, v: m.mean(0),
        "ensemble, worst": lambda m, v: m.min(0),
        "ensemble, uncertainty k=0.5": lambda m, v: m.mean(0) - 0.5 * m.var(0),
    }
    ggn = POSTERIORS.index("ggn")
    for i, precision in enumerate([CHOSEN, *(f"{p:g}" for p in PRECISIONS)]):
        for k in STD_WEIGHTS:
            found[f"ensemble + ggn, std k={k:g}, λ={precision}"] = lambda m, v, i=i, k=k: (
                m.mean(0) - k * np.sqrt(m.var(0) + v[:, ggn, i].mean(0))
            )
    return found


def golds(sets: list[dict[str, Any]], scored: list[Scored], rule: Choice | None, distractors: bool) -> np.ndarray:
    """Expected gold of the choice, `[sizes, prompts]`; NaN for a prompt with fewer candidates. None is the oracle."""
    values = np.full((len(SIZES), len(sets)), np.nan)
    for column, (candidates, one) in enumerate(zip(sets, scored, strict=True)):
        stop = len(candidates["texts"]) if distractors else candidates["own"]
        gold = candidates["gold"][:stop]
        scores = gold if rule is None else rule(one.mean[:, :stop], one.variance[..., :stop])
        for row, n in enumerate(SIZES):
            if n <= stop:
                values[row, column] = expected_best_of_n(torch.from_numpy(scores), torch.from_numpy(gold), n)
    return values


def gold_table(sets: list[dict[str, Any]], scored: list[Scored], distractors: bool) -> dict[str, list[dict[str, Any]]]:
    """For every rule and n: the mean gold over seeds and prompts, by seed, and its errors."""
    seeds = len(scored[0].mean)
    single = [rules(seed) for seed in range(seeds)]
    runs: dict[str, list[Choice | None]] = {name: [one[name] for one in single] for name in single[0]}
    runs |= {name: [rule] for name, rule in ensemble_rules().items()}
    runs["gold oracle"] = [None]
    table: dict[str, list[dict[str, Any]]] = {}
    for name, choices in runs.items():
        values = np.stack([golds(sets, scored, rule, distractors) for rule in choices])  # [seeds, sizes, prompts]
        table[name] = []
        for row, n in enumerate(SIZES):
            there = values[:, row, ~np.isnan(values[0, row])]
            by_seed = there.mean(1)
            table[name].append(
                {
                    "n": n,
                    "gold": round(float(by_seed.mean()), 5),
                    "by_seed": [round(float(g), 5) for g in by_seed],
                    "spread_of_seeds": round(float(by_seed.std(ddof=1)), 5) if len(by_seed) > 1 else None,
                    "standard_error": round(float(there.mean(0).std(ddof=1) / np.sqrt(there.shape[1])), 5),
                    "prompts": there.shape[1],
                }
            )
    return table


def differences(
    sets: list[dict[str, Any]], scored: list[Scored], names: list[str], distractors: bool
) -> dict[str, dict[str, float]]:
    """Gold of a rule less MAP's at the largest n, prompt by prompt over all seeds' means."""
    single = [rules(seed) for seed in range(len(scored[0].mean))]

    def mean_over_seeds(name: str) -> np.ndarray:
        choices = [one[name] for one in single] if name in single[0] else [ensemble_rules()[name]]
        values: np.ndarray = np.mean([golds(sets, scored, rule, distractors)[-1] for rule in choices], axis=0)
        return values

    base = mean_over_seeds("MAP")
    found = {}
    for name in names:
        gain = mean_over_seeds(name) - base
        gain = gain[~np.isnan(gain)]
        found[name] = {"gain": float(gain.mean()), "standard_error": float(gain.std(ddof=1) / np.sqrt(len(gain)))}
    return found
