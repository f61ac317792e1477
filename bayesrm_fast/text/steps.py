"""Responses in steps, each of which may be labelled: rows in the form of trl's stepwise supervision."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bayesrm_fast.errors import InputError
from bayesrm_fast.text.records import PreferencePair, Row, as_rows, preference_pairs
from bayesrm_fast.text.texts import Text, as_list, checked_text, described, is_list, is_missing


@dataclass(frozen=True)
class StepwiseResponse:
    """A prompt and the steps of one response to it, under trl's names.

    Attributes:
        prompt: a text.
        completions: the S steps, none of them empty.
        labels: whether each step is correct, `[S]`; None where nobody said.
        where: what an error calls it; empty for its number.
    """

    prompt: Text
    completions: Sequence[str]
    labels: Sequence[bool] | None = None
    where: str = field(default="", compare=False)


def is_stepwise(row: Any) -> bool:
    """Whether a file's row has its response in steps."""
    return "completions" in row


def iter_stepwise_responses(
    rows: Iterable[Any], source: str = "responses", *, labelled: bool
) -> Iterator[StepwiseResponse]:
    """Validate an iterable of StepwiseResponse, mappings or a table's rows, one by one.

    Args:
        rows: each with `prompt` and `completions`, and perhaps `labels`.
        source: what to call the rows in an error, such as a file's name.
        labelled: whether labels must be there.

    Raises:
        InputError: a missing column, a wrong type, unreadable text, an empty step, or labels of another number than the
            steps.
    """
    for number, given in enumerate(as_rows(rows, source), start=1):
        where = f"{source}, row {number}"
        if isinstance(given, StepwiseResponse):
            where, given = given.where or where, vars(given)
        row = Row(given, ("prompt", "completions", "labels"), where)
        if row.tools():
            raise InputError(f"{where} has tools, which steps have no place for: write them into the prompt")
        prompt = checked_text(row.get("prompt"), f"{where}: prompt")
        steps = checked_steps(row.get("completions"), f"{where}: completions")
        if labelled:
            row.get("labels")  # which refuses a row without the column
        labels = as_list(row.columns.get("labels"))
        must_be_right = labelled or not is_missing(labels)
        checked = _checked_labels(labels, len(steps), where) if must_be_right else None
        yield StepwiseResponse(prompt, steps, checked, where)


def stepwise_responses(rows: Iterable[Any], source: str = "responses", *, labelled: bool) -> list[StepwiseResponse]:
    """All of them; raises what `iter_stepwise_responses` does, and InputError where there are no rows."""
    found = list(iter_stepwise_responses(rows, source, labelled=labelled))
    if not found:
        raise InputError(f"{source}: there are no rows")
    return found


def labelled_records(rows: Sequence[Any], source: str) -> list[PreferencePair] | list[StepwiseResponse]:
    """What a posterior is fitted on: pairs, or responses in labelled steps where the first row has its response so.

    Args:
        rows: of a file, at least one.
        source: what to call them in an error.

    Raises:
        InputError: what `preference_pairs` or `iter_stepwise_responses` raises.
    """
    if is_stepwise(rows[0]):
        return stepwise_responses(rows, source, labelled=True)
    return preference_pairs(rows, source)


def checked_steps(steps: Any, where: str) -> list[str]:
    """At least one step, each a text that is not empty; raises InputError otherwise."""
    steps = as_list(steps)
    if not is_list(steps):
        raise InputError(f"{where} must be a list of steps, not {described(steps)}")
    if not steps:
        raise InputError(f"{where} is empty: a response has at least one step")
    for i, step in enumerate(steps):
        if not isinstance(step, str):
            raise InputError(f"{where}[{i}] must be a string, not {described(step)}")
        checked_text(step, f"{where}[{i}]")
        if not step.strip():
            raise InputError(f"{where}[{i}] is an empty step: leave it out, and its label")
    return list(steps)


def _checked_labels(labels: Any, steps: int, where: str) -> list[bool]:
    if not is_list(labels):
        raise InputError(f"{where}: labels must be a list, true or false for each step, not {described(labels)}")
    if len(labels) != steps:
        raise InputError(f"{where} has {steps} completions and {len(labels)} labels: each step has one label")
    plain = [label.item() if hasattr(label, "item") else label for label in labels]  # scalars of numpy and torch
    for i, label in enumerate(plain):
        if not isinstance(label, bool | int | float) or label not in (0, 1):
            raise InputError(f"{where}: labels[{i}] must be true or false, or 1 or 0, not {label!r:.40}")
    return [bool(label) for label in plain]
