"""The demo's picture."""

from pathlib import Path

import matplotlib
import numpy as np

from demo.passages import IN_DISTRIBUTION

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = {
    "intact passage": "#2e7d4f",
    "damaged copy": "#8fbf9f",
    "another subject": "#d1495b",
    "source code": "#e08e45",
    "prompt echoed": "#7b5ea7",
    "one word repeated": "#b08bd0",
    "punctuation": "#555555",
}


def draw(
    kinds: np.ndarray,  # shape: (prompts, candidates)
    mean: np.ndarray,  # shape: (prompts, candidates)
    std: np.ndarray,  # shape: (prompts, candidates)
    wins: dict[str, list[str]],
    separation: float,
    path: Path,
) -> None:
    """Reward against std, the std of either side, and who wins under either rule."""
    figure, (cloud, sides, winners) = pyplot.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    for kind, colour in COLOURS.items():
        here = kinds == kind
        cloud.scatter(mean[here], std[here], s=16, alpha=0.75, color=colour, label=kind, linewidth=0)
    cloud.set(xlabel="reward", ylabel="posterior std", title="What the model likes, and how sure it is", yscale="log")
    cloud.legend(frameon=False, fontsize=8, markerscale=1.5)

    inside = np.isin(kinds, IN_DISTRIBUTION)
    bins = np.geomspace(std.min(), std.max(), 30)
    for values, label, colour in (
        (std[inside], "in-distribution", "#2e7d4f"),
        (std[~inside], "off-distribution", "#d1495b"),
    ):
        sides.hist(
            values,
            bins=bins,
            density=False,
            weights=np.full(values.size, 1 / values.size),
            alpha=0.6,
            color=colour,
            label=label,
        )
    sides.set(
        xlabel="posterior std",
        ylabel="share of the texts",
        xscale="log",
        title=f"The std of either kind of text: AUROC {separation:.2f}",
    )
    sides.legend(frameon=False)

    left = np.zeros(2)
    names = {"penalty": "reward − std", "MAP": "reward alone"}
    for kind, colour in COLOURS.items():
        counts = np.array([wins[name].count(kind) for name in names])
        winners.barh(list(names.values()), counts, left=left, color=colour)
        for row, count in enumerate(counts):
            if count >= 2:
                winners.text(left[row] + count / 2, row, str(count), ha="center", va="center", color="white")
        left += counts
    winners.set(xlabel="prompts won", title="Who is chosen (colours as on the left)")
    for axis in (cloud, sides, winners):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
