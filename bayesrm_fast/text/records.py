"""What a user gives: prompts, responses, preference pairs and candidate sets, checked by row."""

import itertools
import math
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeVar

from bayesrm_fast.errors import InputError
from bayesrm_fast.text.layouts import ECHOED, Separated, is_dialogue, separated
from bayesrm_fast.text.texts import (
    Text,
    as_list,
    checked_text,
    checked_tools,
    described,
    is_list,
    is_missing,
    key_of,
)

T = TypeVar("T")

Tools = Sequence[Mapping[str, Any]]
"""The functions that a conversation may call, in the form that chat templates take."""

MAY_BE_A_PROMPT = ("question", "instruction", "input", "query", "context", "history", "conversations", "messages")
"""Columns that a prompt may stand in under another name."""

CHANGES_THE_TEXT = ("system", "system_prompt", "images", "image", "chat_template_kwargs")
"""Columns that trainers put into a conversation and that would be dropped here."""


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with the response that was preferred and the one that was not.

    Attributes:
        prompt: a text; None where chosen and rejected are whole texts by themselves.
        chosen, rejected: texts.
        where: what an error calls the pair; empty for its number.
        tools: that the conversation may call.
    """

    prompt: Text | None
    chosen: Text
    rejected: Text
    where: str = field(default="", compare=False)
    tools: Tools | None = None


@dataclass(frozen=True)
class Candidates:
    """A prompt with the responses to choose among, n of them.

    Attributes:
        prompt: a text.
        responses: n texts.
        log_probabilities: of each response under the policy that wrote it, summed over its tokens and so at most 0, for
            rules that need them.
        similarities: `[n, n]`, of each response to every other, for rules that need them.
        gold: what each response is worth by a judge, the more the better, to tune rules by.
        where: what an error calls the set; empty for its number.
        tools: that the conversation may call.
    """

    prompt: Text
    responses: Sequence[Text]
    log_probabilities: Sequence[float] | None = None
    similarities: Sequence[Sequence[float]] | None = None
    gold: Sequence[float] | None = None
    where: str = field(default="", compare=False)
    tools: Tools | None = None


class Row:
    """One row by its columns, whether a record of ours, a mapping or a table's row.

    Args:
        row: what was given.
        names: the columns that it must have, for the error where it has none at all.
        where: what an error calls it; a record's own name goes before.

    Raises:
        InputError: nothing with columns, or a column that would change the text and is not served.
    """

    def __init__(self, row: Any, names: Sequence[str], where: str) -> None:
        self.where = (isinstance(row, PreferencePair | Candidates) and row.where) or where
        self.is_record = isinstance(row, PreferencePair | Candidates)
        if self.is_record:
            row = vars(row)
        for convert in ("to_dict", "_asdict"):  # pandas' rows, and named tuples
            row = getattr(row, convert)() if hasattr(row, convert) and not isinstance(row, Mapping) else row
        if not isinstance(row, Mapping):
            raise InputError(f"{self.where} must be an object with {', '.join(names)}, not {described(row)}")
        self.columns = row
        for name in CHANGES_THE_TEXT:
            if self.has(name):
                raise InputError(
                    f"{self.where} has a column {name!r}, which is not served: make it a part of the prompt"
                )

    def has(self, name: str) -> bool:
        """Whether there is something in a column."""
        value = as_list(self.columns.get(name))
        return not is_missing(value) and value not in ("", [], {})

    def get(self, name: str) -> Any:
        """A column; raises InputError where there is none."""
        if name not in self.columns:
            found = ", ".join(map(str, self.columns)) or "none"
            raise InputError(f"{self.where} has no column {name!r} (it has {found})")
        return self.columns[name]

    def texts(self, responses: Mapping[str, Any], *, may_be_alone: bool = False) -> Separated:
        """Prompt and responses, by their names; raises what `separated` does."""
        checked = {name: checked_text(value, f"{self.where}: {name}") for name, value in responses.items()}
        given = self.columns.get("prompt")
        has_prompt = not is_missing(given) if self.is_record else "prompt" in self.columns
        prompt = checked_text(given, f"{self.where}: prompt") if has_prompt else None
        other = next((name for name in MAY_BE_A_PROMPT if self.has(name)), None)
        if prompt is None and other and any(isinstance(one, str) and not is_dialogue(one) for one in checked.values()):
            raise InputError(f"{self.where} has no column 'prompt', but {other!r}: name it prompt if it is one")
        found = separated(prompt, list(checked.values()), list(checked), self.where)
        if found.prompt is None and not may_be_alone:
            raise InputError(f"{self.where} has no column 'prompt' (it has {', '.join(map(str, self.columns))})")
        return found

    def tools(self) -> list[dict[str, Any]] | None:
        """What the conversation may call."""
        return checked_tools(self.columns.get("tools"), f"{self.where}: tools")


def as_rows(rows: Iterable[Any], source: str) -> Iterable[Any]:
    """What an iterable of rows gives, or a table: pandas', polars' or Arrow's.

    Raises:
        InputError: neither, or a text or a single row.
    """
    if isinstance(rows, str | Mapping):
        raise InputError(f"{source} must be rows one after another, not a {described(rows)}")
    table: Any = rows
    if hasattr(table, "iterrows"):
        return list(table.to_dict("records"))
    convert = getattr(table, "to_dicts", None) or getattr(table, "to_pylist", None)
    if convert is None and not isinstance(rows, Iterable):
        raise InputError(f"{source} must be rows one after another, not {described(rows)}")
    return rows if convert is None else list(convert())


class _ToldOnce:
    """Warnings by their first row alone, because a file's rows are alike."""

    def __init__(self) -> None:
        self.told: set[str] = set()

    def __call__(self, warning: str | None, where: str) -> None:
        if warning is not None and warning not in self.told:
            self.told.add(warning)
            warnings.warn(f"{where}: {warning} (later rows like it are not told)", stacklevel=4)


def _warn_of_echoes(warnings_of_rows: Sequence[str | None], first: str) -> None:
    """One response that begins with its prompt says nothing; where all do, the rows may be whole texts."""
    if len(warnings_of_rows) > 1 and all(warning == ECHOED for warning in warnings_of_rows):
        warnings.warn(f"{first} and all {len(warnings_of_rows)} rows: {ECHOED}", stacklevel=4)


def iter_preference_pairs(rows: Iterable[Any], source: str = "pairs", first: int = 1) -> Iterator[PreferencePair]:
    """Validate an iterable of PreferencePair, dicts, dataset rows or a table's rows, one by one.

    A prompt that both responses repeat is read once. Without a column `prompt`, it is the messages or the turns that
    both conversations begin with.

    Args:
        rows: each a `PreferencePair` or a mapping with `prompt`, `chosen` and `rejected`, and perhaps `tools`.
        source: what to call the rows in an error, such as a file's name.
        first: number of the first row.

    Raises:
        InputError: a missing column, a wrong type, unreadable text, or responses to different prompts.
    """
    tell = _ToldOnce()
    for number, given in enumerate(as_rows(rows, source), start=first):
        row = Row(given, ("prompt", "chosen", "rejected"), f"{source}, row {number}")
        found = row.texts({name: row.get(name) for name in ("chosen", "rejected")}, may_be_alone=True)
        tell(found.warning, row.where)
        chosen, rejected = found.responses
        yield PreferencePair(found.prompt, chosen, rejected, row.where, row.tools())


def all_pairs(rows: Iterable[Any], source: str = "pairs") -> list[PreferencePair]:
    """All of them; raises what `iter_preference_pairs` does, and InputError where there are no rows."""
    return _some(iter_preference_pairs(rows, source), source)


def preference_pairs(rows: Iterable[Any], source: str = "pairs") -> list[PreferencePair]:
    """Those of them that prefer something: a pair of two equal responses is left out, and a warning tells how many.

    Raises:
        InputError: what `all_pairs` raises, or no pair is left.
    """
    found = all_pairs(rows, source)
    equal = [pair for pair in found if pair.chosen == pair.rejected]
    if equal:
        what = f"{equal[0].where}: chosen and rejected are equal, so the pair prefers nothing"
        if len(equal) == len(found):
            raise InputError(what if len(equal) == 1 else f"{what}, and so it is for all {len(found)} pairs")
        warnings.warn(f"{what}; {len(equal)} such pair(s) of {len(found)} are left out", stacklevel=3)
    return [pair for pair in found if pair.chosen != pair.rejected]


def iter_candidate_sets(rows: Iterable[Any], source: str = "candidates", first: int = 1) -> Iterator[Candidates]:
    """Validate an iterable of Candidates or mappings with `prompt` and `responses`, one by one.

    A mapping may have `log_probabilities`, `similarities`, `gold` and `tools` too. A prompt is found as for pairs.

    Raises:
        InputError: a missing column, a wrong type, unreadable text, a row without responses, numbers that are not one
            for each response, or a log-probability above 0.
    """
    tell = _ToldOnce()
    for number, given in enumerate(as_rows(rows, source), start=first):
        row = Row(given, ("prompt", "responses"), f"{source}, row {number}")
        where = row.where
        responses = as_list(row.get("responses"))
        if not is_list(responses):
            raise InputError(f"{where}: responses must be a list, not {described(responses)}")
        if not responses:
            raise InputError(f"{where}: responses is empty")
        found = row.texts({f"responses[{i}]": response for i, response in enumerate(responses)})
        assert found.prompt is not None
        tell(found.warning, where)
        numbers = {name: as_list(row.columns.get(name)) for name in ("log_probabilities", "similarities", "gold")}
        numbers = {name: None if is_missing(values) else values for name, values in numbers.items()}
        for name in ("log_probabilities", "gold"):
            if numbers[name] is not None:
                # Whether a test passes is gold; a log-probability that is true is a mistake.
                _check_numbers(numbers[name], len(responses), f"{where}: {name}", may_be_bool=name == "gold")
        positive = [value for value in numbers["log_probabilities"] or () if value > 0]
        if positive:
            raise InputError(
                f"{where}: log_probabilities holds {positive[0]}, and the logarithm of a probability is at most 0"
            )
        similarities = numbers["similarities"]
        if similarities is not None:
            if not is_list(similarities):
                raise InputError(f"{where}: similarities must be a list of lists, not {described(similarities)}")
            if len(similarities) != len(responses):
                raise InputError(f"{where}: similarities must be {len(responses)} rows, not {len(similarities)}")
            similarities = numbers["similarities"] = [as_list(one) for one in similarities]
            for index, one in enumerate(similarities):
                _check_numbers(one, len(responses), f"{where}: similarities[{index}]")
        yield Candidates(found.prompt, found.responses, **numbers, where=where, tools=row.tools())


def _check_numbers(values: Any, count: int, where: str, *, may_be_bool: bool = False) -> None:
    if not is_list(values):
        raise InputError(f"{where} must be a list of numbers, not {described(values)}")
    are_numbers = all(isinstance(v, Real) and (may_be_bool or not isinstance(v, bool)) for v in values)
    if len(values) != count or not are_numbers or not all(map(_is_finite, values)):
        raise InputError(f"{where} must be {count} finite numbers, one for each response")


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def candidate_sets(rows: Iterable[Any], source: str = "candidates") -> list[Candidates]:
    """All of them; raises what `iter_candidate_sets` does, and InputError where there are no rows."""
    return _some(iter_candidate_sets(rows, source), source)


def iter_pools(rows: Iterable[Any], source: str = "pairs") -> Iterator[PreferencePair | Candidates]:
    """Rows whose responses nobody has compared: pairs in either order, or prompts with two or more responses each.

    All rows are of the first one's kind: candidate sets where that has `responses`, and pairs otherwise.

    Raises:
        InputError: what `iter_candidate_sets` or `iter_preference_pairs` raises, no rows, or a single response.
    """
    given = iter(as_rows(rows, source))
    first = next(given, None)
    if first is None:
        raise InputError(f"{source}: there are no rows")
    rows = itertools.chain([first], given)
    if "responses" not in Row(first, ("prompt", "chosen", "rejected"), f"{source}, row 1").columns:
        yield from iter_preference_pairs(rows, source)
        return
    for one in iter_candidate_sets(rows, source):
        if len(one.responses) < 2:
            raise InputError(f"{one.where}: responses has one response, and a pair needs two")
        yield one


def pairs_within(one: PreferencePair | Candidates) -> int:
    """How many pairs the responses of a row make."""
    return 1 if isinstance(one, PreferencePair) else math.comb(len(one.responses), 2)


def pairs_within_prompts(prompts: Sequence[Text], responses: Sequence[Text]) -> list[PreferencePair]:
    """Each prompt's different responses in pairs, drawn by lot, where nobody said which is the better one.

    Every response is in one pair, and where a prompt has an odd number of them, one is in two. Warns of prompts that
    have but one.

    Raises:
        InputError: no prompt has two responses.
    """
    by_prompt: dict[str, dict[str, int]] = {}
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        by_prompt.setdefault(key_of(prompt), {}).setdefault(key_of(response), row)
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


def single_responses(rows: Iterable[tuple[int, Any]]) -> list[Candidates]:
    """Numbered `(prompt, response)`, or what mappings have under those names; a prompt is found as for pairs.

    Raises:
        InputError: neither, or text that cannot be read, by the row's number.
    """
    names = ("prompt", "response")
    found, told = [], []
    for number, given in rows:
        where = f"row {number}"
        row = Row(
            dict(zip(names, given, strict=True)) if type(given) is tuple and len(given) == 2 else given, names, where
        )
        texts = row.texts({"response": row.get("response")})
        assert texts.prompt is not None
        told.append(texts.warning)
        found.append(Candidates(texts.prompt, texts.responses, where=row.where, tools=row.tools()))
    _warn_of_echoes(told, found[0].where if found else "")
    return found


def checked_references(references: Any, where: Sequence[str]) -> list[Text]:
    """A reference for each row; raises InputError for anything else, by the rows' names in `where`."""
    references = as_list(references)
    if not is_list(references):
        what = repr(references) if isinstance(references, str) else f"a {type(references).__name__}"
        raise InputError(f"relative_to must be 'prompt', a reference for each row or None, not {what}")
    if len(references) != len(where):
        raise InputError(f"there are {len(where)} prompts but {len(references)} references")
    return [checked_text(reference, name) for name, reference in zip(where, references, strict=True)]


def checked_rows(prompts: Sequence[Any], responses: Sequence[Any]) -> tuple[list[Text], list[Text]]:
    """Two lists of as many texts each, no response of which repeats its prompt's messages.

    Raises:
        InputError: anything else, or nothing.
    """
    prompts, responses = as_list(prompts), as_list(responses)
    for name, texts in (("prompts", prompts), ("responses", responses)):
        if not is_list(texts):
            raise InputError(f"{name} must be a list, not {described(texts)}")
    if len(prompts) != len(responses):
        raise InputError(f"there are {len(prompts)} prompts but {len(responses)} responses")
    if not prompts:
        raise InputError("there is nothing to score: the list is empty")
    found = separated_rows(prompts, responses)
    _warn_of_echoes([warning for *_, warning in found], "row 1")
    return [prompt for prompt, *_ in found], [response for _, response, _ in found]


def separated_rows(prompts: Sequence[Any], responses: Sequence[Any]) -> list[tuple[Text, Text, str | None]]:
    """Prompt and response of each row as they are read, with the warning of that; raises InputError of no text."""
    rows = []
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        texts = checked_text(prompt, f"prompts[{i}]"), [checked_text(response, f"responses[{i}]")]
        found = separated(*texts, [f"responses[{i}]"], f"row {i + 1}")
        assert found.prompt is not None
        rows.append((found.prompt, found.responses[0], found.warning))
    return rows
