"""What a person sees: tables and the picture."""

from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.table import Table

from bayesrm_fast.select.estimators import best_of_n_kl, mean_and_standard_error, sizes_up_to
from bayesrm_fast.select.rules import first_best
from demo.experiment import DEFAULT, MAP, Outcome

matplotlib.use("Agg")
from matplotlib import pyplot

ROWS = 4
"""Candidates shown of the best by either rule."""

COLOURS = {MAP: "#d1495b", DEFAULT: "#2e7d4f"}


def changed_prompts(outcome: Outcome) -> list[int]:
    """Where the reward alone and the default choose differently."""
    return [i for i, best in enumerate(outcome.best) if first_best(best.mean) != best.index]


def prompt_table(outcome: Outcome, at: int) -> Table:
    """The best candidates of one prompt by either rule, highest reward first."""
    one, best = outcome.sets[at], outcome.best[at]
    by_reward = best.mean.argsort(descending=True, stable=True)
    leading = {*by_reward[:ROWS].tolist(), *best.scores.argsort(descending=True)[:ROWS].tolist()}
    winners = {MAP: first_best(best.mean), "default": best.index}
    headings = ("candidate", "reward", "std", "reward − std", "chosen by", "on the subject")
    table = Table(
        *headings, title=f"“{one.prompt} …”, the best of {len(best.mean)}; reward and std relative to their mean"
    )
    for i in by_reward.tolist():
        if i in leading:
            numbers = (best.mean[i], best.variance[i].sqrt(), best.scores[i])
            chosen = " and ".join(name for name, index in winners.items() if index == i)
            table.add_row(one.responses[i], *(f"{value:.2f}" for value in numbers), chosen, f"{one.gold[i]:.0%}")
    return table


def gold_table(outcome: Outcome) -> Table:
    """Gold of every rule's choice by n, and its gain at the largest n."""
    count = len(outcome.best[0].mean)
    sizes = sizes_up_to(count)
    title = f"share of the chosen text that is on the subject, by the number of candidates; {len(outcome.best)} prompts"
    table = Table("chosen by", *(f"n = {n}" for n in sizes), f"gain over MAP at {count}", title=title)
    for name, curves in outcome.curves.items():
        gain, error = mean_and_standard_error((curves - outcome.curves[MAP])[:, -1].tolist())
        told = "" if name == MAP else f"{gain:+.3f} ± {error:.3f}"
        table.add_row(name, *(f"{value:.3f}" for value in curves.mean(0).tolist()), told)
    return table


def draw(outcome: Outcome, at: int, path: Path) -> None:
    """Gold against n, and the candidates of one prompt."""
    figure, (course, cloud) = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    sizes = sizes_up_to(len(outcome.best[0].mean))
    kl = [best_of_n_kl(n) for n in sizes]
    for name, curves in outcome.curves.items():
        if name == "oracle":
            continue
        middle, error = zip(*(mean_and_standard_error(column.tolist()) for column in curves.T), strict=True)
        strong: dict[str, Any] = (
            {"color": COLOURS[name], "lw": 2.4} if name in COLOURS else {"color": "#999999", "lw": 1.2}
        )
        course.plot(kl, middle, "o-" if name in COLOURS else "o--", ms=4, label=name, **strong)
        if name in COLOURS:
            low, high = (torch.tensor(middle) + sign * torch.tensor(error) for sign in (-1, 1))
            course.fill_between(kl, low, high, color=COLOURS[name], alpha=0.12, linewidth=0)
    course.set_xticks(kl, [f"{value:.1f}\nn = {n}" for value, n in zip(kl, sizes, strict=True)])
    course.set(xlabel="KL of best-of-n to the policy, nats", ylabel="share of the text on the subject")
    course.set_title(
        f"What the chosen text is worth: mean of {len(outcome.best)} prompts and standard error", fontsize=11
    )
    course.legend(frameon=False, fontsize=9)

    one, best = outcome.sets[at], outcome.best[at]
    std = best.variance.sqrt()
    points = cloud.scatter(
        std, best.mean, c=one.gold, cmap="RdYlGn", vmin=0, vmax=1, s=30, edgecolors="#555555", linewidths=0.4
    )
    for index, (name, colour) in zip((first_best(best.mean), best.index), COLOURS.items(), strict=True):
        cloud.scatter(std[index], best.mean[index], s=170, facecolors="none", edgecolors=colour, linewidths=2)
        cloud.annotate(
            name,
            (std[index], best.mean[index]),
            (0, 12),
            textcoords="offset points",
            color=colour,
            ha="center",
            fontsize=9,
        )
    cloud.margins(0.15)
    cloud.set(xlabel="relative std", ylabel="relative reward")
    cloud.set_title(f"The candidates of “{one.prompt} …”", fontsize=11)
    figure.colorbar(points, label="share of the text on the subject")
    for axis in (course, cloud):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
