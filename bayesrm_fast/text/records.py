"""What a user gives: prompts, responses, preference pairs and candidate sets, checked by row."""

import math
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeVar

from bayesrm_fast.errors import InputError

T = TypeVar("T")

Text = str | Sequence[Mapping[str, str]]
"""A string, or a list of chat messages `{"role": ..., "content": ...}`."""


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with the response that was preferred and the one that was not.

    Attributes:
        prompt, chosen, rejected: texts.
        where: what an error calls the pair; empty for its number.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Candidates:
    """A prompt with the responses to choose among, n of them.

    Attributes:
        prompt: a text.
        responses: n texts.
        log_probabilities: of each response under the policy that wrote it, summed over its tokens, for rules that need
            them.
        similarities: `[n, n]`, of each response to every other, for rules that need them.
        gold: what each response is worth by a judge, the more the better, to tune rules by.
        where: what an error calls the set; empty for its number.
    """

    prompt: Text
    responses: Sequence[Text]
    log_probabilities: Sequence[float] | None = None
    similarities: Sequence[Sequence[float]] | None = None
    gold: Sequence[float] | None = None
    where: str = field(default="", compare=False)


def check_text(text: Any, where: str) -> None:
    """Raise InputError unless `text` is a string or a list of chat messages that a tokenizer can read."""
    if isinstance(text, str):
        pieces = [text]
    elif isinstance(text, Sequence) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in text
    ):
        if not text:
            raise InputError(f"{where} is an empty list of messages")
        pieces = [message["content"] for message in text]
    else:
        raise InputError(
            f"{where} must be a string or a list of messages with string role and content, not {_describe(text)}"
        )
    for piece in pieces:
        if "\0" in piece:
            raise InputError(f"{where} contains a NUL character")
        if any("\ud800" <= character <= "\udfff" for character in piece):
            raise InputError(f"{where} contains a lone surrogate, which is not valid Unicode")


def _describe(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _record_fields(row: Any, names: Sequence[str], where: str) -> list[Any]:
    if not isinstance(row, Mapping):
        raise InputError(f"{where} must be an object with {', '.join(names)}, not {_describe(row)}")
    for name in names:
        if name not in row:
            raise InputError(f"{where} has no column {name!r} (it has {', '.join(map(str, row)) or 'none'})")
    return [row[name] for name in names]


def iter_preference_pairs(rows: Iterable[Any], source: str = "pairs", first: int = 1) -> Iterator[PreferencePair]:
    """Validate an iterable of PreferencePair, dicts or dataset rows, one by one.

    Args:
        rows: each a `PreferencePair` or a mapping with `prompt`, `chosen` and `rejected`.
        source: what to call the rows in an error, such as a file's name.
        first: number of the first row.

    Raises:
        InputError: a missing column, a wrong type, unreadable text, or a pair of two equal responses.
    """
    names = ("prompt", "chosen", "rejected")
    for number, row in enumerate(rows, start=first):
        where = (isinstance(row, PreferencePair) and row.where) or f"{source}, row {number}"
        values = _record_fields(vars(row) if isinstance(row, PreferencePair) else row, names, where)
        for name, value in zip(names, values, strict=True):
            check_text(value, f"{where}: {name}")
        prompt, chosen, rejected = values
        pair = PreferencePair(prompt, chosen, rejected, where)
        if pair.chosen == pair.rejected:
            raise InputError(f"{where}: chosen and rejected are equal, so the pair prefers nothing")
        yield pair


def preference_pairs(rows: Iterable[Any], source: str = "pairs") -> list[PreferencePair]:
    """All of them; raises what `iter_preference_pairs` does, and InputError where there are no rows."""
    return _some(iter_preference_pairs(rows, source), source)


def iter_candidate_sets(rows: Iterable[Any], source: str = "candidates", first: int = 1) -> Iterator[Candidates]:
    """Validate an iterable of Candidates or mappings with `prompt` and `responses`, one by one.

    A mapping may have `log_probabilities`, `similarities` and `gold` too.

    Raises:
        InputError: a missing column, a wrong type, unreadable text, a row without responses, or numbers that are not
            one for each response.
    """
    for number, row in enumerate(rows, start=first):
        where = (isinstance(row, Candidates) and row.where) or f"{source}, row {number}"
        given = vars(row) if isinstance(row, Candidates) else row
        prompt, responses = _record_fields(given, ["prompt", "responses"], where)
        check_text(prompt, f"{where}: prompt")
        if isinstance(responses, str) or not isinstance(responses, Sequence):
            raise InputError(f"{where}: responses must be a list, not {_describe(responses)}")
        if not responses:
            raise InputError(f"{where}: responses is empty")
        for index, response in enumerate(responses):
            check_text(response, f"{where}: responses[{index}]")
        log_probabilities, similarities, gold = map(given.get, ("log_probabilities", "similarities", "gold"))
        for name, values in (("log_probabilities", log_probabilities), ("gold", gold)):
            if values is not None:
                # Whether a test passes is gold; a log-probability that is true is a mistake.
                _check_numbers(values, len(responses), f"{where}: {name}", may_be_bool=name == "gold")
        if similarities is not None:
            if isinstance(similarities, str) or not isinstance(similarities, Sequence):
                raise InputError(f"{where}: similarities must be a list of lists, not {_describe(similarities)}")
            if len(similarities) != len(responses):
                raise InputError(f"{where}: similarities must be {len(responses)} rows, not {len(similarities)}")
            for index, one in enumerate(similarities):
                _check_numbers(one, len(responses), f"{where}: similarities[{index}]")
        yield Candidates(prompt, list(responses), log_probabilities, similarities, gold, where)


def _check_numbers(values: Any, count: int, where: str, *, may_be_bool: bool = False) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InputError(f"{where} must be a list of numbers, not {_describe(values)}")
    is_number = [isinstance(v, Real) and (may_be_bool or not isinstance(v, bool)) and math.isfinite(v) for v in values]
    if len(values) != count or not all(is_number):
        raise InputError(f"{where} must be {count} finite numbers, one for each response")


def candidate_sets(rows: Iterable[Any], source: str = "candidates") -> list[Candidates]:
    """All of them; raises what `iter_candidate_sets` does, and InputError where there are no rows."""
    return _some(iter_candidate_sets(rows, source), source)


def pairs_within_prompts(prompts: Sequence[Text], responses: Sequence[Text]) -> list[PreferencePair]:
    """Each prompt's different responses in pairs, drawn by lot, where nobody said which is the better one.

    Every response is in one pair, and where a prompt has an odd number of them, one is in two. Warns of prompts that
    have but one.

    Raises:
        InputError: no prompt has two responses.
    """
    by_prompt: dict[str, dict[str, int]] = {}
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        by_prompt.setdefault(str(prompt), {}).setdefault(str(response), row)
    lot = random.Random(0)
    pairs = []
    for rows in (list(different.values()) for different in by_prompt.values()):
        lot.shuffle(rows)
        partners = rows[1:] + rows[:1]
        pairs += [(rows[i], partners[i]) for i in range(0, len(rows), 2) if len(rows) > 1]
    alone = sum(len(different) == 1 for different in by_prompt.values())
    if not pairs:
        raise InputError("no prompt has two different responses, so there is nothing to compare")
    if alone:
        warnings.warn(f"{alone} prompt(s) with a single response are left out", stacklevel=3)
    return [
        PreferencePair(prompts[a], responses[a], responses[b], f"the pair of rows {a + 1} and {b + 1}")
        for a, b in pairs
    ]


def _some(records: Iterable[T], source: str) -> list[T]:
    found = list(records)
    if not found:
        raise InputError(f"{source}: there are no rows")
    return found


def prompt_and_response(row: Any, where: str) -> tuple[Text, Text]:
    """A `(prompt, response)`, or what a mapping has under those names.

    Raises:
        InputError: neither, or text that cannot be read.
    """
    names = ("prompt", "response")
    values = row if isinstance(row, tuple) and len(row) == 2 else _record_fields(row, names, where)
    for name, value in zip(names, values, strict=True):
        check_text(value, f"{where}: {name}")
    prompt, response = values
    return prompt, response


def check_rows(prompts: Sequence[Any], responses: Sequence[Any]) -> None:
    """Raise InputError unless these are two lists of as many texts each, and not empty."""
    for name, texts in (("prompts", prompts), ("responses", responses)):
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise InputError(f"{name} must be a list, not {type(texts).__name__}")
    if len(prompts) != len(responses):
        raise InputError(f"there are {len(prompts)} prompts but {len(responses)} responses")
    if not prompts:
        raise InputError("there is nothing to score: the list is empty")
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        check_text(prompt, f"prompts[{i}]")
        check_text(response, f"responses[{i}]")
