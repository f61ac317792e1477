"""Rows of RewardBench (arXiv 2403.13787) and RewardBench 2 (arXiv 2506.01937), checked by row."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bayesrm_fast.errors import InputError
from bayesrm_fast.text.texts import Text, as_list, checked_text, described, is_list, is_missing

TIES = "ties"
"""The subset of version 2 whose prompts have several correct answers, in lower case."""

TIES_ID = re.compile(r"(ref|tied):(\d+)")
"""Of a row of Ties: a prompt with one correct answer, or with several, and the number that the two of them share."""


@dataclass(frozen=True)
class BenchmarkRow:
    """A prompt with its responses, the correct ones first.

    Attributes:
        id: unique within its subset.
        subset: its name.
        prompt: a text.
        responses: n of them.
        num_correct: how many of them are correct.
        where: what an error calls the row.
    """

    id: str | int
    subset: str
    prompt: Text
    responses: Sequence[str]
    num_correct: int
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class BenchmarkRows:
    """All rows of a file.

    Attributes:
        version: of RewardBench; 1 for pairs, 2 for one or several correct responses among many.
        rows: at least one.
    """

    version: int
    rows: list[BenchmarkRow]


def benchmark_rows(rows: Iterable[Any], source: str = "rows") -> BenchmarkRows:
    """Check rows of either version; texts stay to the letter what they are.

    Args:
        rows: mappings with `id`, `subset`, `prompt`, `chosen` and `rejected`: texts in version 1, lists of texts in
            version 2, where `num_correct` counts the chosen ones.
        source: what an error calls the rows.

    Raises:
        InputError: no rows, rows of both versions, a column that is absent or of the wrong type, an id that a subset
            has twice, or lists of wrong lengths.
    """
    found: list[BenchmarkRow] = []
    first_with: dict[tuple[str, str | int], str] = {}
    version = 0
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        if not isinstance(row, dict):
            raise InputError(f"{where} must be an object, not {described(row)}")
        chosen = as_list(_column(row, "chosen", where))
        own = 2 if is_list(chosen) else 1
        version = version or own
        if own != version:
            raise InputError(
                f"{where} is of RewardBench {own} and row 1 of RewardBench {version} "
                "(whose chosen is a text in 1, a list in 2): give one version"
            )
        one = _pair(row, where) if version == 1 else _several(row, where)
        earlier = first_with.setdefault((one.subset, one.id), where)
        if earlier != where:
            raise InputError(f"{where} has the id {one.id!r} of {earlier.removeprefix(f'{source}, ')}, in one subset")
        found.append(one)
    if not found:
        raise InputError(f"{source}: there are no rows")
    return BenchmarkRows(version, found)


def _column(row: dict[str, Any], name: str, where: str) -> Any:
    value = row.get(name)
    if is_missing(value):
        raise InputError(f"{where} has no {name!r} (it has {', '.join(map(str, row))})")
    return value


def _pair(row: dict[str, Any], where: str) -> BenchmarkRow:
    responses = [_text(row, name, where) for name in ("chosen", "rejected")]
    return _row(row, responses, 1, where)


def _several(row: dict[str, Any], where: str) -> BenchmarkRow:
    chosen, rejected = (_texts(row, name, where) for name in ("chosen", "rejected"))
    counts = {"num_correct": len(chosen), "num_incorrect": len(rejected), "total_completions": len(chosen + rejected)}
    for name, count in counts.items():
        told = row.get(name, count)
        if told != count:
            raise InputError(
                f"{where}: {name} is {told!r}, but there are {len(chosen)} chosen and {len(rejected)} rejected"
            )
    one = _row(row, chosen + rejected, len(chosen), where)
    if one.subset.lower() == TIES:
        if not isinstance(one.id, str) or not TIES_ID.fullmatch(one.id):
            raise InputError(f"{where}: the id of a row of Ties is 'ref:<number>' or 'tied:<number>', not {one.id!r}")
    elif len(chosen) != 1:
        raise InputError(f"{where}: chosen must be a list of one text outside of Ties, not of {len(chosen)}")
    return one


def _row(row: dict[str, Any], responses: list[str], num_correct: int, where: str) -> BenchmarkRow:
    subset, name = _column(row, "subset", where), _column(row, "id", where)
    if not isinstance(subset, str) or not subset:
        raise InputError(f"{where}: subset must be a text, not {subset!r}")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise InputError(f"{where}: id must be a text or a whole number, not {name!r}")
    prompt = checked_text(_column(row, "prompt", where), f"{where}: prompt")
    return BenchmarkRow(name, subset, prompt, responses, num_correct, where)


def _text(row: dict[str, Any], name: str, where: str) -> str:
    return _string(_column(row, name, where), f"{where}: {name}")


def _texts(row: dict[str, Any], name: str, where: str) -> list[str]:
    texts = as_list(_column(row, name, where))
    if not is_list(texts) or not texts:
        raise InputError(f"{where}: {name} must be a list of at least one text")
    return [_string(text, f"{where}: {name}[{i}]") for i, text in enumerate(texts)]


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} must be a text, not {described(value)}")
    return str(checked_text(value, where))
