"""What a person sees: tables and the picture."""

from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from bayesrm_fast.plots import figure_in
from bayesrm_fast.select.estimators import best_of_n_kl, mean_and_standard_error, sizes_up_to
from bayesrm_fast.select.rules import first_best
from demo.experiment import DEFAULT, LEAST_STD, MAP, MBR, RULES, Outcome

ROWS = 4
"""Candidates shown of the best by either rule."""

LINES = {MAP: "C3o-", DEFAULT: "C2o-", LEAST_STD: "C7^--", MBR: "C7s--"}
"""How each rule is drawn, in matplotlib's short form of colour, marker and dashes."""


def differing_prompts(outcome: Outcome) -> list[int]:
    """Where what the reward alone chooses and what the default chooses are not worth the same."""
    choices = [(first_best(best.mean), best.index) for best in outcome.best]
    return [i for i, (before, after) in enumerate(choices) if outcome.gold[i, before] != outcome.gold[i, after]]


def prompt_table(outcome: Outcome, at: int) -> Table:
    """The best candidates of one prompt by either rule, highest reward first; of equal texts one."""
    texts, best = outcome.texts[at], outcome.best[at]
    winners = {MAP: first_best(best.mean), DEFAULT: best.index}
    distinct = torch.tensor([texts.index(text) for text in texts]).unique()
    by_reward, by_score = (
        distinct[values[distinct].argsort(descending=True, stable=True)].tolist() for values in (best.mean, best.scores)
    )
    headings = ("candidate", "reward", "std", "reward − std", "chosen by", "gold")
    what = f"the best of {len(distinct)} different candidates by either rule, relative to their mean"
    table = Table(*headings, title=Text(f"“{outcome.prompts[at]} …”: {what}"))
    for i in by_reward:
        if i in by_reward[:ROWS] + by_score[:ROWS]:
            numbers = (best.mean[i], best.variance[i].sqrt(), best.scores[i])
            chosen = " and ".join(name for name, index in winners.items() if texts[index] == texts[i])
            table.add_row(Text(texts[i]), *(f"{value:.2f}" for value in numbers), chosen, f"{outcome.gold[at, i]:.2f}")
    return table


def gold_table(outcome: Outcome) -> Table:
    """Gold of every rule's choice by n, and its gain at the largest n."""
    count = outcome.gold.shape[1]
    sizes = sizes_up_to(count)
    title = f"Gold of the chosen text by the number of candidates, {len(outcome.gold)} prompts"
    meaning = "\n".join(f"{name}: {what}" for name, what in RULES.items())
    table = Table("rule", *(f"{n}" for n in sizes), f"over MAP at {count}", title=title, caption=meaning)
    for name, curves in outcome.curves.items():
        told = "" if name == MAP else _gain_over_map(outcome, name)
        table.add_row(name, *(f"{value:.2f}" for value in curves.mean(0).tolist()), told)
    return table


def _gain_over_map(outcome: Outcome, name: str) -> str:
    gain, error = mean_and_standard_error((outcome.curves[name] - outcome.curves[MAP])[:, -1].tolist())
    return f"{gain:+.2f} ± {error:.2f}"


def course_of_map(outcome: Outcome) -> str:
    """Whether the reward alone over-optimises: what it loses from its best n to the largest, paired by prompt."""
    sizes = sizes_up_to(outcome.gold.shape[1])
    curves = outcome.curves[MAP]
    best = first_best(curves.mean(0))
    if best == len(sizes) - 1:
        return f"The reward alone does not over-optimise here: its gold is highest at n = {sizes[-1]}."
    loss, error = mean_and_standard_error((curves[:, -1] - curves[:, best]).tolist())
    verdict = "so the reward over-optimises" if loss < -2 * error else "which is within two standard errors"
    return f"From n = {sizes[best]}, its best, to {sizes[-1]} MAP changes by {loss:+.2f} ± {error:.2f}, {verdict}."


def draw(outcome: Outcome, at: int, path: Path) -> None:
    """Gold against n, and the candidates of one prompt."""
    with figure_in(path, 12, 4.8) as figure:
        course, cloud = figure.subplots(1, 2)
        _draw_gold(course, outcome)
        _draw_candidates(cloud, outcome, at)
        for axis in (course, cloud):
            axis.spines[["top", "right"]].set_visible(False)


def _draw_gold(axis: Any, outcome: Outcome) -> None:
    sizes = sizes_up_to(outcome.gold.shape[1])
    for name, line in LINES.items():
        width = 2.6 if name in (MAP, DEFAULT) else 1.2
        axis.plot(sizes, outcome.curves[name].mean(0), line, label=f"{name}: {RULES[name]}", lw=width)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [f"{n}\n{best_of_n_kl(n):.1f}" for n in sizes])
    axis.set(xlabel="candidates n, and KL of best-of-n to the policy in nats", ylabel="gold: share on the subject")
    gain = f"default over MAP at {sizes[-1]}: {_gain_over_map(outcome, DEFAULT)}"
    axis.set_title(f"What the chosen text is worth, {len(outcome.gold)} prompts\n{gain}", fontsize=11)
    axis.legend(frameon=False, fontsize=9, loc="lower left")
    axis.margins(y=0.6)


def _draw_candidates(axis: Any, outcome: Outcome, at: int) -> None:
    best = outcome.best[at]
    std = best.variance.sqrt()
    points = axis.scatter(
        std, best.mean, c=outcome.gold[at], cmap="RdYlGn", vmin=0, vmax=1, edgecolors="#555555", lw=0.4
    )
    for index, name, colour in ((first_best(best.mean), MAP, "C3"), (best.index, DEFAULT, "C2")):
        place = (float(std[index]), float(best.mean[index]))
        axis.scatter(*place, s=170, facecolors="none", edgecolors=colour, linewidths=2)
        axis.annotate(name, place, (0, 12), textcoords="offset points", color=colour, ha="center")
    axis.margins(0.15)
    axis.set(xlabel="std of the difference to the candidates’ mean", ylabel="difference of the reward to their mean")
    axis.set_title(f"The candidates of “{outcome.prompts[at]} …”", fontsize=11)
    axis.figure.colorbar(points, label="gold")
