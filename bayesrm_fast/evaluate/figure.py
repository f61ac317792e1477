"""A figure of a report on RewardBench."""

from pathlib import Path
from typing import Any

from bayesrm_fast.atomic import cannot_write
from bayesrm_fast.evaluate.accuracy import section_of
from bayesrm_fast.evaluate.report import Report
from bayesrm_fast.fit.calibration import check_plot

POSTERIOR, MARGIN = "#1b6fb3", "#d1741f"


def draw(told: Report, path: Path) -> None:
    """Draw subsets, accuracy by coverage and reliability side by side.

    Raises:
        InputError: there is no matplotlib, or the file cannot be written.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    count = len(told.subsets)
    figure = Figure(figsize=(13, max(4.2, 0.24 * count + 1.2)), layout="constrained")
    subsets, coverage, bins = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    _draw_subsets(subsets, told)
    if told.figures is not None:
        _draw_coverage(coverage, told)
        _draw_reliability(bins, told)
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise cannot_write(path, error) from error


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


def _draw_coverage(axis: Any, told: Report) -> None:
    for name, label, colour in (("posterior", "by P", POSTERIOR), ("margin", "by |Δ| alone", MARGIN)):
        axis.plot(told.curves["coverage"], told.curves[name], color=colour, label=label)
    axis.set(title="accuracy where answered", xlabel="share of rows answered")
    axis.legend(frameon=False)


def _draw_reliability(axis: Any, told: Report) -> None:
    assert told.figures is not None
    axis.plot([0.5, 1], [0.5, 1], color="black", lw=0.8)
    for name, label, colour in (("posterior", "posterior", POSTERIOR), ("reward", "reward alone", MARGIN)):
        one = told.figures.probabilities[name]
        axis.plot(
            [b["confidence"] for b in one["bins"]],
            [b["accuracy"] for b in one["bins"]],
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
