"""Prompts and responses to token ids, and the records that hold them."""

import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from bayesrm_fast.errors import InputError

T = TypeVar("T")

Text = str | Sequence[Mapping[str, str]]
"""A string, or a list of chat messages `{"role": ..., "content": ...}`."""

LONGEST_DEFAULT = 4096
"""Where a model accepts more tokens than this, the default `max_length` stops here, so that memory stays bounded."""


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with the response that was preferred and the one that was not."""

    prompt: Text
    chosen: Text
    rejected: Text


@dataclass(frozen=True)
class Candidates:
    """A prompt with the responses to choose among."""

    prompt: Text
    responses: Sequence[Text]


@dataclass(frozen=True)
class TokenizedText:
    """One row for the model.

    `token_type_ids` is None for models that have none; `truncated` says that `max_length` cut something.
    """

    input_ids: list[int]
    token_type_ids: list[int] | None
    truncated: bool


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
    names = [field.name for field in fields(PreferencePair)]
    for number, row in enumerate(rows, start=first):
        where = f"{source}, row {number}"
        values = _record_fields(vars(row) if isinstance(row, PreferencePair) else row, names, where)
        for name, value in zip(names, values, strict=True):
            check_text(value, f"{where}: {name}")
        pair = PreferencePair(*values)
        if pair.chosen == pair.rejected:
            raise InputError(f"{where}: chosen and rejected are equal, so the pair prefers nothing")
        yield pair


def preference_pairs(rows: Iterable[Any], source: str = "pairs") -> list[PreferencePair]:
    """All of them; raises what `iter_preference_pairs` does, and InputError where there are no rows."""
    return _some(iter_preference_pairs(rows, source), source)


def iter_candidate_sets(rows: Iterable[Any], source: str = "candidates", first: int = 1) -> Iterator[Candidates]:
    """Validate an iterable of Candidates or mappings with `prompt` and `responses`, one by one.

    Raises:
        InputError: a missing column, a wrong type, unreadable text, or a row without responses.
    """
    for number, row in enumerate(rows, start=first):
        where = f"{source}, row {number}"
        prompt, responses = _record_fields(
            vars(row) if isinstance(row, Candidates) else row, ["prompt", "responses"], where
        )
        check_text(prompt, f"{where}: prompt")
        if isinstance(responses, str) or not isinstance(responses, Sequence):
            raise InputError(f"{where}: responses must be a list, not {_describe(responses)}")
        if not responses:
            raise InputError(f"{where}: responses is empty")
        for index, response in enumerate(responses):
            check_text(response, f"{where}: responses[{index}]")
        yield Candidates(prompt, list(responses))


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
    return [PreferencePair(prompts[a], responses[a], responses[b]) for a, b in pairs]


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


class TextEncoder:
    """Turns a prompt and a response into one row of token ids.

    How a row is joined:

    1. A tokenizer with a chat template renders the prompt's and the response's messages with it; a plain prompt
       counts as the user's message and a plain response as the assistant's.
    2. A tokenizer with a separator token (BERT, RoBERTa, DeBERTa) encodes prompt and response as its own pair.
    3. Any other tokenizer encodes the prompt, a blank line and the response as one text.

    In 2 and 3 a list of messages is written as `role: content` paragraphs.

    How a row longer than `max_length` is cut: the longer of prompt and response is shortened first, until both are
    equally long. A decoder is scored at the response's end, so in 1 and 3 either loses its first tokens; an encoder is
    scored at its first token, so in 2 either loses its last ones. Special tokens at the row's ends are kept.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise InputError(f"{type(tokenizer).__name__} is a slow tokenizer; load it with use_fast=True")
        if max_length < 8:
            raise InputError(f"max_length must be at least 8, not {max_length}")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.joining = (
            "chat template"
            if tokenizer.chat_template
            else "pair"
            if tokenizer.sep_token_id is not None
            else "blank line"
        )

    def encode(self, prompts: Sequence[Text], responses: Sequence[Text], source: str = "") -> list[TokenizedText]:
        """Encode checked texts, `prompts[i]` with `responses[i]`; warn once where responses are empty."""
        empty = [i for i, response in enumerate(responses) if isinstance(response, str) and not response.strip()]
        if empty:
            warnings.warn(
                f"{source}{len(empty)} empty response(s), the first at position {empty[0]}; scored as they are",
                stacklevel=3,
            )
        if not prompts:
            return []
        if self.joining == "pair":
            encoded = self._tokenize([_as_plain(p) for p in prompts], [_as_plain(r) for r in responses])
            boundaries = None
        elif self.joining == "chat template":
            rendered = [self._render(p, r) for p, r in zip(prompts, responses, strict=True)]
            encoded = self._tokenize([whole for _, whole in rendered], add_special_tokens=False)
            boundaries = [shared for shared, _ in rendered]
        else:
            fronts = [_as_plain(prompt) + "\n\n" for prompt in prompts]
            encoded = self._tokenize([f + _as_plain(r) for f, r in zip(fronts, responses, strict=True)])
            boundaries = [len(front) for front in fronts]
        return [
            self._cut(encoded.encodings[i], None if boundaries is None else boundaries[i]) for i in range(len(prompts))
        ]

    def _tokenize(self, texts: list[str], partners: list[str] | None = None, add_special_tokens: bool = True) -> Any:
        return self.tokenizer(
            texts, partners, add_special_tokens=add_special_tokens, truncation=False, padding=False, verbose=False
        )

    def _render(self, prompt: Text, response: Text) -> tuple[int, str]:
        """Where in the rendered text the response starts, and the text."""
        asked: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        given: Any = [{"role": "assistant", "content": response}] if isinstance(response, str) else list(response)
        try:
            whole = str(self.tokenizer.apply_chat_template(asked + given, tokenize=False))
            front = str(self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # jinja's errors are those of whoever wrote the template
            raise InputError(f"the tokenizer's chat template does not take these messages: {error}") from error
        shared = next((i for i, (a, b) in enumerate(zip(front, whole, strict=False)) if a != b), len(front))
        return shared, whole

    def _cut(self, encoding: Any, boundary: int | None) -> TokenizedText:
        ids, types = encoding.ids, encoding.type_ids
        uses_types = "token_type_ids" in self.tokenizer.model_input_names
        surplus = len(ids) - self.max_length
        if surplus > 0:
            if boundary is None:
                part = encoding.sequence_ids
            else:
                part = [int(stop > boundary) for _, stop in encoding.offsets]
                specials = set(self.tokenizer.all_special_ids)
                part = [None if i in (0, len(ids) - 1) and ids[i] in specials else part[i] for i in range(len(ids))]
            in_prompt = [i for i, of in enumerate(part) if of == 0]
            in_response = [i for i, of in enumerate(part) if of == 1]
            room = self.max_length - (len(ids) - len(in_prompt) - len(in_response))
            kept_prompt = min(len(in_prompt), max(room - len(in_response), room // 2))
            kept_response = min(len(in_response), room - kept_prompt)
            if boundary is None:
                dropped = {*in_prompt[kept_prompt:], *in_response[kept_response:]}
            else:
                dropped = {*in_prompt[: len(in_prompt) - kept_prompt], *in_response[: len(in_response) - kept_response]}
            ids = [token for i, token in enumerate(ids) if i not in dropped]
            types = [kind for i, kind in enumerate(types) if i not in dropped]
        return TokenizedText(list(ids), list(types) if uses_types else None, surplus > 0)


def _as_plain(text: Text) -> str:
    if isinstance(text, str):
        return text
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in text)


def default_max_length(tokenizer: PreTrainedTokenizerBase, max_position_embeddings: int | None) -> int:
    """The longest row that both tokenizer and model accept, at most `LONGEST_DEFAULT`."""
    return min(int(tokenizer.model_max_length), max_position_embeddings or LONGEST_DEFAULT, LONGEST_DEFAULT)


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
