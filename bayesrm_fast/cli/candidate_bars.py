"""Some prompts with their candidates' mean ± std as bars, for a person at a terminal."""

import math
import re
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayesrm_fast.errors import shortened

if TYPE_CHECKING:
    from bayesrm_fast.select.choice import BestOfN
    from bayesrm_fast.text.records import Candidates

PROMPTS = 3
"""That are shown: the first whose choice the uncertainty has changed, then the first of the others."""

CANDIDATES = 8
"""Of a prompt, the best by their scores."""

BAR_WIDTH, SHORTEST_BAR = 32, 10
"""Characters; a terminal that has not even the latter left is shown no bars."""

NUMBER_WIDTH = 9
"""Characters: of -1.23e-05."""

LONGEST_PROMPT, SHORTEST_RESPONSE = 80, 10
"""Characters; responses take what bars of the full width leave, and at least the latter."""

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Characters by which a text would command the terminal."""


class CandidateBars:
    """Keeps the prompts that are worth a look while a file is worked on."""

    def __init__(self) -> None:
        self._changed: list[tuple[Candidates, BestOfN]] = []
        self._same: list[tuple[Candidates, BestOfN]] = []

    def add(self, one: "Candidates", best: "BestOfN") -> None:
        """Keep a prompt if there is room."""
        from bayesrm_fast.select.rules import first_best

        kept = self._same if first_best(best.mean) == best.index else self._changed
        if len(kept) < PROMPTS:
            kept.append((one, best))

    def show(self, console: Console) -> None:
        """Print a table for each of them."""
        for one, best in (self._changed + self._same)[:PROMPTS]:
            console.print(_table(one, best, console.width))
            console.print()


def _table(one: "Candidates", best: "BestOfN", width: int) -> Table:
    from bayesrm_fast.text.texts import as_plain

    mean, std, scores = best.mean.tolist(), best.variance.sqrt().tolist(), best.scores.tolist()
    by_score = sorted(range(len(scores)), key=lambda i: (i != best.index, math.isnan(scores[i]), -scores[i], -mean[i]))
    shown = by_score[:CANDIDATES]
    of_all = f" ({len(shown)} of {len(scores)} candidates)" if len(shown) < len(scores) else ""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", title_justify="left")
    table.title = Text(_line(as_plain(one.prompt), LONGEST_PROMPT) + of_all, style="bold")
    table.add_column("", width=1)
    free = width - 2 - 3 * (NUMBER_WIDTH + 1) - 2  # a space after each column
    left = max(free - BAR_WIDTH, SHORTEST_RESPONSE)
    bar_width = min(free - left, BAR_WIDTH)
    has_bars = bar_width >= SHORTEST_BAR
    table.add_column("response", width=left, no_wrap=True)
    for heading in ("mean", "std", "score"):
        table.add_column(heading, justify="right", width=NUMBER_WIDTH)
    if has_bars:
        table.add_column("mean ± std", width=bar_width, no_wrap=True)
    bars = mean_std_bars([mean[i] for i in shown], [std[i] for i in shown], max(bar_width, SHORTEST_BAR))
    for i, bar in zip(shown, bars, strict=True):
        style = "green" if i == best.index else ""
        numbers = ("" if math.isnan(value) else f"{value:.3g}" for value in (mean[i], std[i], scores[i]))
        response = Text(_line(as_plain(one.responses[i]), left))
        table.add_row("→" if i == best.index else "", response, *numbers, *[Text(bar)] * has_bars, style=style)
    return table


def mean_std_bars(mean: list[float], std: list[float], width: int = BAR_WIDTH) -> list[str]:
    """A bar from mean − std to mean + std for each, with a dot at the mean, all on one axis of `width` characters.

    Args:
        mean: finite numbers.
        std: of each; NaN for one that is not known, which has no bar but its dot.
        width: characters.
    """
    spread = [0.0 if math.isnan(value) else value for value in std]
    low = min(m - s for m, s in zip(mean, spread, strict=True))
    high = max(m + s for m, s in zip(mean, spread, strict=True))
    scale = (width - 1) / (high - low) if high > low else 0.0

    def place(value: float) -> int:
        return round((value - low) * scale)

    bars = []
    for m, s in zip(mean, spread, strict=True):
        start, stop = place(m - s), place(m + s)
        line = [" "] * start + ["━"] * (stop - start + 1) + [" "] * (width - 1 - stop)
        line[place(m)] = "●"
        bars.append("".join(line))
    return bars


def _line(text: str, longest: int) -> str:
    return shortened(CONTROLS.sub("�", " ".join(text.split())), longest)
