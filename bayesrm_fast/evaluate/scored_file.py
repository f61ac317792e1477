"""A file that `bayesrm score` wrote, with what its input knows of right and wrong."""

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bayesrm_fast.errors import InputError
from bayesrm_fast.text.files import iter_rows
from bayesrm_fast.text.records import Candidates, PreferencePair, iter_candidate_sets, iter_preference_pairs
from bayesrm_fast.text.steps import StepwiseResponse, iter_stepwise_responses
from bayesrm_fast.text.texts import Text, as_plain, checked_text, is_list, is_missing, key_of

Kind = Literal["responses", "pairs", "steps"]

LARGEST = 3.5e38
"""Beyond what float32 holds, in which rewards are."""

Record = Candidates | PreferencePair | StepwiseResponse


@dataclass(frozen=True)
class ScoredLine:
    """One row of a scored file: n responses, one pair or n steps.

    Attributes:
        prompt: as the file has it; None where a pair has none.
        mean, std: of each, `[n]`.
        probability: that the pair's chosen response is preferred, or that the step is correct, `[n]`; empty for
            responses.
        is_cut: whether `max_length` cut some of it.
    """

    prompt: Text | None
    mean: list[float]
    std: list[float]
    probability: list[float]
    is_cut: bool


@dataclass(frozen=True)
class ScoredFile:
    """All rows of a scored file.

    Attributes:
        path: of the file.
        kind: what a row is.
        is_relative: whether means and stds are of the difference to the prompt's other responses, or of a pair.
        rows: at least one.
    """

    path: Path
    kind: Kind
    is_relative: bool
    rows: list[ScoredLine]


@dataclass(frozen=True)
class KnownOfRow:
    """What the scored row's input says of it.

    Attributes:
        texts: of what was scored, for a person: `[n]`; of a pair the chosen and the rejected response.
        gold: what each response is worth; None where nobody said, and for pairs and steps.
        labels: whether what `probability` is of is so, `[n]`: always for a pair; None where nobody said.
    """

    texts: list[str]
    gold: list[float] | None = None
    labels: list[bool] | None = None


def read_scored_file(path: Path) -> ScoredFile:
    """Read and check a file that `bayesrm score` wrote.

    Raises:
        InputError: what `iter_rows` raises, or a row that `bayesrm score` does not write, by its number.
    """
    kind: Kind | None = None
    is_relative = False
    rows = []
    for number, row in enumerate(iter_rows(path), start=1):
        where = f"{path}, row {number}"
        own = _kind_of(row, where)
        own_is_relative = own == "pairs" or (own == "responses" and is_list(row.get("baseline")))
        if kind is None:
            kind, is_relative = own, own_is_relative
        elif own != kind:
            raise InputError(f"{where} is of {own}, and the rows before it are of {kind}")
        elif own_is_relative != is_relative:
            raise InputError(f"{where}: rows with and without --relative cannot be told together")
        rows.append(_checked_line(row, own, where))
    assert kind is not None  # an empty file is refused by its reader
    return ScoredFile(path, kind, is_relative, rows)


def _kind_of(row: Mapping[str, Any], where: str) -> Kind:
    absent = [name for name in ("prompt", "mean", "std", "truncated") if name not in row]
    if absent:
        raise InputError(f"{where} has no column {absent[0]!r}: give a file that `bayesrm score` wrote")
    if {"first_error", "aggregates"} <= row.keys():  # one alone may be a column that stayed beside the results
        return "steps"
    return "responses" if is_list(row["mean"]) else "pairs"


def _checked_line(row: Mapping[str, Any], kind: Kind, where: str) -> ScoredLine:
    names = ("mean", "std") if kind == "responses" else ("mean", "std", "probability")
    found: dict[str, list[float]] = {"probability": []}
    for name in names:
        values = row.get(name)
        values = values if kind != "pairs" else [values]
        if not is_list(values) or not values or not all(map(_is_number, values)):
            wanted = "a finite number" if kind == "pairs" else "a list of finite numbers"
            raise InputError(f"{where}: {name} must be {wanted}")
        if len(values) != len(found.get("mean", values)):
            raise InputError(f"{where} has {len(found['mean'])} means and {len(values)} values of {name}")
        found[name] = [float(value) for value in values]
    if min(found["std"]) < 0:
        raise InputError(f"{where}: std must not be negative")
    if not all(0 <= p <= 1 for p in found["probability"]):
        raise InputError(f"{where}: probability must be between 0 and 1")
    cut = row["truncated"]
    prompt = None if is_missing(row["prompt"]) else checked_text(row["prompt"], f"{where}: prompt")
    return ScoredLine(prompt, **found, is_cut=any(cut) if is_list(cut) else bool(cut))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def known_of(scored: ScoredFile, input_file: Path) -> Iterator[KnownOfRow]:
    """What the file that was scored says of each row, in order.

    Raises:
        InputError: a row that cannot be read, or is not the one that was scored.
    """
    readers: dict[Kind, Any] = {
        "responses": iter_candidate_sets,
        "pairs": iter_preference_pairs,
        "steps": functools.partial(iter_stepwise_responses, labelled=False),
    }
    records: Iterator[Record] = readers[scored.kind](iter_rows(input_file), str(input_file))
    for number, (line, record) in enumerate(itertools.zip_longest(scored.rows, records), start=1):
        if line is None or record is None:
            longer, shorter = (input_file, scored.path) if line is None else (scored.path, input_file)
            raise InputError(
                f"{longer} has a row {number}, and {shorter} ends before it: give the file that was scored"
            )
        known = _known(record)
        count = 1 if scored.kind == "pairs" else len(known.texts)
        if key_of(record.prompt or "") != key_of(line.prompt or "") or count != len(line.mean):
            raise InputError(
                f"{input_file}, row {number} is not what {scored.path}, row {number} is the score of: "
                "give the file that was scored"
            )
        yield known


def _known(record: Record) -> KnownOfRow:
    if isinstance(record, PreferencePair):
        return KnownOfRow([as_plain(record.chosen), as_plain(record.rejected)], labels=[True])
    if isinstance(record, StepwiseResponse):
        labels = None if record.labels is None else list(record.labels)
        return KnownOfRow(list(record.completions), labels=labels)
    gold = None if record.gold is None else [float(value) for value in record.gold]
    return KnownOfRow([as_plain(response) for response in record.responses], gold)
