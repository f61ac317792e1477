"""Responses in segments to rows of token ids, with the token at which each segment is read."""

import warnings
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from bayesrm_fast.errors import InputError
from bayesrm_fast.text.encoder import TextEncoder
from bayesrm_fast.text.examples import SegmentedRow, TokenizedRow
from bayesrm_fast.text.joining import Joined, is_plain_text
from bayesrm_fast.text.steps import StepwiseResponse
from bayesrm_fast.text.texts import Text, as_list, checked_text, described, is_list

STEP_SEPARATOR = "\n"
"""What trl puts after each step by default."""

TRAINED_STEP_SEPARATOR = "trained_step_separator"
"""Key of a tokenizer's configuration that says what stood after each step that a token classifier was trained on."""

Span = tuple[int, int]


class SegmentEncoder:
    """Turns a prompt and a response in segments into one row of token ids.

    **Steps** are laid out as trl's `PRMTrainer` does: the tokenizer's bos where it has one, the prompt, and each step
    with the separator after it, every piece tokenized by itself and without special tokens; a step is read at its
    separator, where trl puts its label. Where a `joining` is given, the response is its steps with the separator after
    each, joined with the prompt as any other response, and tokenized as a whole: Qwen's form is "template" with the
    separator `<extra_0>`.

    **Spans** of a response are joined and tokenized as any other response, and read at their last token.

    A row that is longer than `max_length` loses tokens of its prompt: those at its beginning, or at its end in a
    tokenizer's own pair. A response is never cut.

    Args:
        encoder: of whole responses.
        separator: what stands after each step, one token; empty for nothing, and each step is read at its last token.
            None for what the model was trained with, where its files say, else a line break.
    """

    def __init__(self, encoder: TextEncoder, separator: str | None = None) -> None:
        trained = encoder.tokenizer.init_kwargs.get(TRAINED_STEP_SEPARATOR)
        if separator is None:
            separator = STEP_SEPARATOR if trained is None else trained
        if not isinstance(separator, str):
            raise InputError(f"step_separator must be a string, not {separator!r}")
        joining = encoder.joiner.recorded
        if trained is not None and (separator != trained or joining is not None):
            how = "" if joining is None else f" and joined by {joining!r}"
            warnings.warn(
                f"the model was trained on steps in trl's form with {trained!r} after each, and here they have "
                f"{separator!r}{how}, so scores may differ",
                stacklevel=3,
            )
        self.encoder = encoder
        self.separator = separator

    def encode_steps(self, responses: Sequence[StepwiseResponse]) -> list[SegmentedRow]:
        """Encode checked responses; `ends` are the tokens of their steps' separators.

        Raises:
            InputError: a separator that is not one token, a prompt that cannot be joined so, or a response that is
                longer than `max_length`; by its row.
        """
        if self.encoder.joiner.joining is None:
            return self._in_pieces(responses)
        return [self._joined(response) for response in responses]

    def encode_spans(
        self, prompt: Text, response: str, ends: Sequence[int] | Sequence[Span], where: str = "the response"
    ) -> SegmentedRow:
        """Encode one response.

        Args:
            prompt, response: texts; the response is a string.
            ends: of each segment in characters of the response, ascending, each segment beginning where the one before
                it ends; or `(start, end)` of each.
            where: what an error calls it.

        Raises:
            InputError: spans that are empty, overlap or leave the text, that begin or end within a token, or that hold
                none; a response that is longer than `max_length`, or that a chat template changes.
        """
        if not isinstance(response, str):
            raise InputError(f"{where} must be a string where ends are given, not {described(response)}")
        checked_text(response, where)
        return SegmentedRow(*self._whole(prompt, response, checked_spans(ends, len(response), where), where))

    def _in_pieces(self, responses: Sequence[StepwiseResponse]) -> list[SegmentedRow]:
        tokenizer = self.encoder.tokenizer
        separator = self._separator_ids(responses[0].where) if responses else []
        front = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        rows = []
        for response in responses:
            if not isinstance(response.prompt, str):
                raise InputError(
                    f"{response.where}: the prompt is a conversation, which trl's form of steps has no place for: give "
                    "joining='template'"
                )
            prompt, *steps = self.encoder.encode_responses([response.prompt, *response.completions])
            for i, step in enumerate(steps):
                if not step and not separator:
                    raise InputError(f"{response.where}: completions[{i}] has no tokens")
            pieces = [step + separator for step in steps]
            lengths = list(accumulate(map(len, pieces)))
            room = self._room_for_prompt(len(prompt), len(front) + lengths[-1], response.where)
            kept = prompt[len(prompt) - room :]
            ids = [*front, *kept, *(token for piece in pieces for token in piece)]
            before = len(front) + len(kept)
            ends = [before + length - 1 for length in lengths]
            row = self._row(ids, [0] * len(ids), room < len(prompt), response.where)
            rows.append(SegmentedRow(row, ends, None if response.labels is None else list(response.labels)))
        return rows

    def _joined(self, response: StepwiseResponse) -> SegmentedRow:
        pieces = [step + self.separator for step in response.completions]
        stops = list(accumulate(map(len, pieces)))
        starts = [0, *stops[:-1]]
        spans = list(zip(starts, stops, strict=True))
        separator = self._separator_ids(response.where)
        row, ends = self._whole(response.prompt, "".join(pieces), spans, response.where)
        for i, end in enumerate(ends):
            if separator and row.input_ids[end] != separator[0]:
                raise InputError(
                    f"{response.where}: the tokenizer merges the step separator {self.separator!r} with the text "
                    f"around it at the end of completions[{i}], and it must be one token of its own"
                )
        return SegmentedRow(row, ends, None if response.labels is None else list(response.labels))

    def _separator_ids(self, where: str) -> list[int]:
        if not self.separator:
            return []
        (ids,) = self.encoder.encode_responses([self.separator])
        tokenizer = self.encoder.tokenizer
        if not ids:
            raise InputError(
                f"{where}: the tokenizer makes no token of the step separator {self.separator!r}: take another, or "
                "step_separator='' for none, which reads a step at its last token (as trl does with such a separator)"
            )
        if len(ids) > 1:
            parts = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(ids)))
            raise InputError(
                f"{where}: the tokenizer splits the step separator {self.separator!r} into {parts}, and it must be one "
                "token"
            )
        if ids[0] == tokenizer.unk_token_id:
            raise InputError(f"{where}: the tokenizer does not know the step separator {self.separator!r}")
        return ids

    def _whole(self, prompt: Text, response: str, spans: Sequence[Span], where: str) -> tuple[TokenizedRow, list[int]]:
        """A row that is tokenized as a whole, and the tokens at which its segments are read."""
        self.encoder.joiner.warn_of_another([is_plain_text(prompt, response)], stacklevel=4)
        joined = self.encoder.joiner.join(prompt, response, where, None)
        (encoding,) = self.encoder.encodings([joined])
        part = self.encoder.parts(encoding, joined.boundary)
        place = _place_of(response, joined, where)
        tokens = [
            (i, start - place, stop - place)
            for i, ((start, stop), of) in enumerate(zip(encoding.offsets, part, strict=True))
            if (of == 1 if joined.boundary is None else place < stop and start < place + len(response))
        ]
        read = [_last_token(tokens, span, f"{where}: segment {n}") for n, span in enumerate(spans, start=1)]
        in_prompt = [i for i, of in enumerate(part) if of == 0]
        room = self._room_for_prompt(len(in_prompt), len(part) - len(in_prompt), where)
        surplus = len(in_prompt) - room
        dropped = set(in_prompt[room:] if joined.boundary is None else in_prompt[:surplus])
        kept = [i for i in range(len(part)) if i not in dropped]
        ids, types = [encoding.ids[i] for i in kept], [encoding.type_ids[i] for i in kept]
        return self._row(ids, types, bool(dropped), where), [kept.index(i) for i in read]

    def _row(self, ids: list[int], types: list[int], truncated: bool, where: str) -> TokenizedRow:
        uses_types = "token_type_ids" in self.encoder.tokenizer.model_input_names
        return TokenizedRow(ids, types if uses_types else None, truncated, where)

    def _room_for_prompt(self, prompt: int, others: int, where: str) -> int:
        """How many of the prompt's tokens a row has room for beside all others."""
        if others > self.encoder.max_length:
            raise InputError(
                f"{where}: the response takes {others} tokens with its special ones, and max_length is "
                f"{self.encoder.max_length}: its segments would be cut"
            )
        return min(prompt, self.encoder.max_length - others)


def checked_spans(ends: Any, length: int, where: str) -> list[Span]:
    """`(start, end)` of each segment of a text of `length` characters.

    Raises:
        InputError: none, or spans that are empty, overlap, come in another order or leave the text.
    """
    ends = as_list(ends)
    if not is_list(ends) or not ends:
        raise InputError(f"{where}: ends must be the end of each segment, or (start, end) of each, at least one")
    spans: list[Span] = []
    for number, given in enumerate(ends, start=1):
        before = spans[-1][1] if spans else 0
        given = as_list(given)
        span = tuple(given) if is_list(given) else (before, given)
        name = f"{where}: segment {number}"
        if len(span) != 2 or not all(type(one) is int for one in span):
            raise InputError(f"{name} must be a whole number or two of them, not {given!r:.40}")
        start, stop = span
        if not 0 <= start <= length or not stop <= length:
            raise InputError(f"{name}, {start} to {stop}, leaves the response's {length} characters")
        if start >= stop:
            raise InputError(f"{name}, {start} to {stop}, is empty")
        if start < before:
            raise InputError(f"{name}, {start} to {stop}, overlaps the one before it, which ends at {before}")
        spans.append((start, stop))
    return spans


def _place_of(response: str, joined: Joined, where: str) -> int:
    """The character of a row's text at which the response begins."""
    if joined.boundary is None or joined.text.startswith(response, joined.boundary):
        return joined.boundary or 0
    found = joined.text.rfind(response)
    if found < joined.boundary:
        raise InputError(
            f"{where}: joining prompt and response changes the response, so that its segments cannot be found"
        )
    return found


def _last_token(tokens: Sequence[tuple[int, int, int]], span: Span, where: str) -> int:
    """The last token of a segment, among those of the response: each its place and its first and last characters."""
    start, stop = span
    for edge in {start, stop} - {0}:  # prompt and response may share a token
        across = next((one for one in tokens if one[1] < edge < one[2]), None)
        if across is not None:
            raise InputError(
                f"{where}: one token holds the characters {across[1]} to {across[2]}, and the segment has an edge at "
                f"{edge}: it must be between two tokens"
            )
    inside = [place for place, _, last in tokens if start < last <= stop]
    if not inside:
        raise InputError(f"{where} has no token of its own")
    return inside[-1]
