"""The report on a scored file as one HTML page, which loads nothing from elsewhere."""

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bayesrm_fast.errors import shortened
from bayesrm_fast.evaluate.figure import draw_coverage, draw_reliability
from bayesrm_fast.evaluate.scores_report import RULES, Example, GoldCurves, ScoresReport
from bayesrm_fast.fit.reliability import Reliability
from bayesrm_fast.plots import POSTERIOR, REWARD_ALONE, new_figure
from bayesrm_fast.text.texts import as_plain

ENTRIES = 8
"""Responses or steps of a row that are shown."""

LONGEST_TEXT = 2_000
"""Characters of a prompt or a response."""

BAR_ENDS = (6.0, 194.0)
"""Of the axis of a row's bars, in units of their view box."""

INCHES = 5.2
"""Width of a chart."""

EXAMPLES = {
    "responses": (
        "Prompts to look at",
        "First those at which reward − std chooses another response than the reward alone, then the largest std. "
        "The best by reward − std is marked.",
    ),
    "pairs": ("Pairs to look at", "The chosen response has the least probability of being preferred in the first."),
    "steps": (
        "Responses to look at",
        "What was labelled has the least probability in the first; without labels, the first has a step nearest to ½.",
    ),
}
"""Title and note, by kind."""


@dataclass(frozen=True)
class Entry:
    """A line of an example's table; `start`, `dot` and `stop` are places in the bar's view box."""

    text: str
    numbers: list[str]
    is_best: bool
    start: float
    dot: float
    stop: float
    bar_label: str


@dataclass(frozen=True)
class ShownExample:
    """A row with a table; `left_out` entries of it are not shown, and `zero` is a place in the bars' view box."""

    number: int
    prompt: str
    heading: str
    columns: list[str]
    entries: list[Entry]
    left_out: int
    zero: float | None


def page(told: ScoresReport) -> str:
    """The page; texts are escaped by the template, which has no other markup in it than the charts.

    Raises:
        InputError: there is no matplotlib.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    title, note = EXAMPLES[told.scored.kind]
    charts, names = _charts(told)
    return template.render(
        name=told.scored.path.name,
        kind=told.scored.kind,
        summary=_summary(told),
        charts=charts,
        charts_width=round(INCHES * len(names) * 5),
        charts_label=", ".join(names),
        reliability=[(_of_reward(name), _worth(one)) for name, one in told.probabilities.items()],
        labelled=told.labelled,
        gold=told.gold,
        gold_gain="" if told.gold is None else _gain(told.gold),
        gold_rows=[(name, _numbers(values)) for name, values in _gold(told.gold).items()],
        examples_title=title,
        examples_note=note,
        examples=[_shown(told, one) for one in told.examples],
    )


def _summary(told: ScoresReport) -> list[tuple[str, str]]:
    kind = told.scored.kind
    what = {"responses": "reward", "pairs": "difference of rewards", "steps": "log-odds of a step"}[kind]
    if kind == "responses" and told.scored.is_relative:
        what = "reward relative to the prompt’s responses"
    found = [("rows", f"{len(told.scored.rows):,}")]
    found += [] if kind == "pairs" else [(kind, f"{len(told.mean):,}")]
    found += [
        (f"{what}, from", _number(float(told.mean.min()))),
        (f"{what}, to", _number(float(told.mean.max()))),
        ("std, median", _number(float(told.std.median()))),
        ("std, largest", _number(float(told.std.max()))),
        ("rows with cut text", f"{told.cut:,}"),
    ]
    return found + ([] if told.changed is None else [("prompts whose choice the std changes", f"{told.changed:,}")])


def _of_reward(name: str) -> str:
    return {"posterior": "with the posterior", "reward": "of the reward alone"}[name]


def _worth(one: Reliability) -> list[str]:
    return [f"{value:.3f}" for value in (one.accuracy, one.nll, one.brier, one.ece)]


def _gold(gold: GoldCurves | None) -> dict[str, list[float]]:
    return {} if gold is None else gold.gold


def _gain(gold: GoldCurves) -> str:
    first, *_, last = RULES
    error = f" ± {gold.gain_error:.2g}" if math.isfinite(gold.gain_error) else ""
    return f"At n = {gold.sizes[-1]} {last} is worth {gold.gain:+.2g}{error} over {first} (± standard error)."


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _numbers(values: Sequence[float]) -> list[str]:
    return [_number(value) for value in values]


def _charts(told: ScoresReport) -> tuple[Markup, list[str]]:
    """The charts side by side, and what they are of."""
    names = ["std against mean"]
    names += ["reliability", "accuracy where answered"] if told.probabilities else []
    names += ["gold of the best of n"] if told.gold is not None else []
    figure = new_figure(INCHES * len(names), 4.2)
    axes = dict(zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True))
    # As an image within the drawing: a file may have a million dots.
    scatter = axes["std against mean"]
    scatter.plot(told.mean.numpy(), told.std.numpy(), ".", ms=4, alpha=0.5, color=POSTERIOR, rasterized=True)
    scatter.set(title="std against mean", xlabel="mean", ylabel="std", ylim=(0, None))
    if told.probabilities:
        draw_reliability(axes["reliability"], {name: asdict(one) for name, one in told.probabilities.items()})
        draw_coverage(axes["accuracy where answered"], told.coverage)
    if told.gold is not None:
        _draw_gold(axes["gold of the best of n"], told.gold)
    for axis in axes.values():
        axis.spines[["top", "right"]].set_visible(False)
    return _svg(figure), names


def _draw_gold(axis: Any, gold: GoldCurves) -> None:
    for (name, values), colour in zip(gold.gold.items(), (REWARD_ALONE, POSTERIOR), strict=True):
        axis.plot(gold.sizes, values, "o-", ms=4, color=colour, label=name)
    axis.set_xscale("log", base=2)
    axis.set_xticks(gold.sizes, [str(n) for n in gold.sizes])
    axis.minorticks_off()
    axis.set(title="gold of the best of n", xlabel="n", ylabel=f"gold, mean over {gold.prompts} prompts")
    axis.legend(frameon=False)


def _svg(figure: Any) -> Markup:
    import matplotlib

    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "bayesrm"}):  # the same bytes every time
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = drawn.getvalue()
    return Markup(text[text.index("<svg") :])  # without XML's head


def _shown(told: ScoresReport, example: Example) -> ShownExample:
    line, known, kind = example.line, example.known, told.scored.kind
    count = len(line.mean)
    scores = [m - s for m, s in zip(line.mean, line.std, strict=True)]
    order = sorted(range(count), key=lambda i: -scores[i]) if kind == "responses" else list(range(count))
    shown = order[:ENTRIES]
    columns: dict[str, list[str]] = {"mean": _numbers(line.mean), "std": _numbers(line.std)}
    if kind == "responses":
        columns["mean − std"] = _numbers(scores)
    else:
        columns["P(preferred)" if kind == "pairs" else "P(correct)"] = _numbers(line.probability)
    if known is not None and known.gold is not None:
        columns["gold"] = _numbers(known.gold)
    if kind == "steps" and known is not None and known.labels is not None:
        columns["label"] = ["correct" if label else "wrong" for label in known.labels]
    # A difference or a log-odds is read against 0, a reward is not.
    ends = [] if kind == "responses" and not told.scored.is_relative else [0.0]
    low = min(ends + [scores[i] for i in shown])
    high = max(ends + [line.mean[i] + line.std[i] for i in shown])
    texts = _texts(example, kind)

    def place(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(BAR_ENDS[0] + share * (BAR_ENDS[1] - BAR_ENDS[0]), 2)

    entries = [
        Entry(
            text=shortened(texts[i], LONGEST_TEXT),
            numbers=[one[i] for one in columns.values()],
            is_best=kind == "responses" and i == order[0],
            start=place(line.mean[i] - line.std[i]),
            dot=place(line.mean[i]),
            stop=place(line.mean[i] + line.std[i]),
            bar_label=f"{_number(line.mean[i])} ± {_number(line.std[i])}",
        )
        for i in shown
    ]
    prompt = "" if line.prompt is None else shortened(as_plain(line.prompt), LONGEST_TEXT)
    heading = {"responses": "response", "pairs": "pair", "steps": "step"}[kind]
    zero = place(0.0) if ends else None
    return ShownExample(example.number, prompt, heading, list(columns), entries, count - len(entries), zero)


def _texts(example: Example, kind: str) -> list[str]:
    """What stands before the numbers: the texts, or their positions where the input is not given."""
    if kind == "pairs":
        if example.known is None:
            return ["chosen less rejected"]
        chosen, rejected = (shortened(text, LONGEST_TEXT // 2) for text in example.known.texts)
        return [f"chosen: {chosen}\nrejected: {rejected}"]
    if example.known is not None:
        return example.known.texts
    return [f"{i}" for i in range(len(example.line.mean))]
