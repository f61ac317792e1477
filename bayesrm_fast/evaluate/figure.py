"""A figure of a report on RewardBench."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bayesrm_fast.evaluate.accuracy import section_of
from bayesrm_fast.evaluate.report import Report
from bayesrm_fast.plots import POSTERIOR, REWARD_ALONE, figure_in


def draw(told: Report, path: Path) -> None:
    """Draw subsets, accuracy by coverage and reliability side by side.

    Raises:
        InputError: there is no matplotlib, or the file cannot be written.
    """
    count = len(told.subsets)
    with figure_in(path, 13, max(4.2, 0.24 * count + 1.2)) as figure:
        subsets, coverage, bins = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
        _draw_subsets(subsets, told)
        if told.figures is not None:
            draw_coverage(coverage, told.curves)
            draw_reliability(bins, told.figures.probabilities)


def _draw_subsets(axis: Any, told: Report) -> None:
    sections = list(told.sections)
    place = {subset: section_of(told.version, subset) for subset in told.subsets}

    def rank(subset: str) -> tuple[int, str]:
        section = place[subset]
        return (len(sections) if section is None else sections.index(section), subset)

    ordered = sorted(told.subsets, key=rank, reverse=True)
    colours = ["#1b6fb3", "#2a9d6f", "#b5483c", "#7a56a8", "#8a7a2f", "#4f7f8c", "#888888"]
    axis.barh(
        ordered,
        [told.subsets[subset] for subset in ordered],
        color=[colours[min(rank(subset)[0], len(colours) - 1)] if place[subset] else colours[-1] for subset in ordered],
    )
    axis.axvline(0.5 if told.version == 1 else 0.25, color="black", lw=0.8, ls=":")
    axis.set(title=f"RewardBench {told.version}: overall {told.overall:.3f}", xlabel="score", xlim=(0, 1))
    axis.tick_params(axis="y", labelsize=8)


def draw_coverage(axis: Any, curves: Mapping[str, Sequence[float]]) -> None:
    """Draw the accuracy where the surest rows are answered.

    Args:
        axis: matplotlib's.
        curves: `coverage`, and the accuracy there by `posterior` probability and by `margin`.
    """
    for name, label, colour in (("posterior", "by P", POSTERIOR), ("margin", "by |Δ| alone", REWARD_ALONE)):
        axis.plot(curves["coverage"], curves[name], color=colour, label=label)
    axis.set(title="accuracy where answered", xlabel="share of rows answered")
    axis.legend(frameon=False)


def draw_reliability(axis: Any, probabilities: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw how often the predicted side is right, by its probability.

    Args:
        axis: matplotlib's.
        probabilities: the fields of a `Reliability` by `posterior` and `reward`, or one of them.
    """
    axis.plot([0.5, 1], [0.5, 1], color="black", lw=0.8)
    for name, label, colour in (("posterior", "posterior", POSTERIOR), ("reward", "reward alone", REWARD_ALONE)):
        if name not in probabilities:
            continue
        one = probabilities[name]
        bins = [b for b in one["bins"] if b["count"]]
        axis.plot(
            [b["confidence"] for b in bins],
            [b["accuracy"] for b in bins],
            "o-",
            ms=4,
            color=colour,
            label=f"{label}: NLL {one['nll']:.3f}, ECE {one['ece']:.3f}",
        )
    axis.set(
        title="reliability",
        xlabel="probability of the predicted side",
        ylabel="share that is right",
        xlim=(0.5, 1),
        ylim=(0, 1.03),
    )
    axis.legend(frameon=False, fontsize=8, loc="lower right")
