"""Prompts and responses to token ids."""

import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bayesrm_fast.errors import InputError, shown
from bayesrm_fast.locks import lock_of
from bayesrm_fast.text.examples import TokenizedPair, TokenizedRow
from bayesrm_fast.text.joining import Joined, Joiner, Joining, as_plain, is_plain_text
from bayesrm_fast.text.records import PreferencePair, Tools
from bayesrm_fast.text.texts import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_DEFAULT = 4096
"""Where a model accepts more tokens than this, the default `max_length` stops here, so that memory stays bounded."""

SHORTEST = 8
"""The least `max_length`: special tokens and a little of prompt and response."""


class TextEncoder:
    """Turns a prompt and a response into one row of token ids.

    `Joiner` says how a row is joined.

    How a row longer than `max_length` is cut: the longer of prompt and response is shortened first, until both are
    equally long. A decoder is scored at the response's end, so either loses its first tokens; an encoder is scored at
    its first token, so of a tokenizer's own pair either loses its last ones. Special tokens at the row's ends are kept.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        joining: Joining | None = None,
        appends_eos: bool | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise InputError(f"{type(tokenizer).__name__} is a slow tokenizer; load it with use_fast=True")
        if isinstance(max_length, bool) or not isinstance(max_length, int):
            raise InputError(f"max_length must be a whole number, not {max_length!r}")
        if max_length < SHORTEST:
            raise InputError(f"max_length must be at least {SHORTEST}, not {max_length}")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.joiner = Joiner(tokenizer, joining, appends_eos)

    @property
    def joining(self) -> Joining:
        """How rows of plain text are joined."""
        return self.joiner.of()

    def encode(
        self,
        prompts: Sequence[Text | None],
        responses: Sequence[Text],
        where: Sequence[str] | None = None,
        tools: Sequence[Tools | None] | None = None,
    ) -> list[TokenizedRow]:
        """Encode checked texts, `prompts[i]` with `responses[i]`.

        Warns once where responses are empty, where rows are joined otherwise than they were for training, and where a
        chat template is given what it has rendered before.

        Args:
            prompts, responses: N of each; a prompt is None where the response is a whole text.
            where: what an error calls a row. Default: its number.
            tools: that the conversations may call.

        Raises:
            InputError: messages or tools that cannot be written as text, or a row without tokens.
        """
        where = where or [f"row {i + 1}" for i in range(len(prompts))]
        empty = [i for i, response in enumerate(responses) if _is_blank(response)]
        if empty:
            warnings.warn(
                f"{len(empty)} empty response(s), the first is {where[empty[0]]}; scored as they are",
                stacklevel=3,
            )
        given = zip(prompts, responses, where, tools or [None] * len(prompts), strict=True)
        joined = [self.joiner.join(*one) for one in given]
        self.joiner.warn_of_another(list(map(is_plain_text, prompts, responses)), stacklevel=3)
        self.joiner.warn_of_rendered(prompts, where, stacklevel=3)
        encoded = self.encodings(joined)
        return [self._cut(encoded[i], joined[i].boundary, where[i]) for i in range(len(joined))]

    def encode_pairs(self, pairs: Sequence[PreferencePair]) -> list[TokenizedPair]:
        """Encode checked pairs; raises what `encode` does."""
        prompts, tools = [pair.prompt for pair in pairs], [pair.tools for pair in pairs]
        sides = [
            self.encode(
                prompts, [getattr(pair, side) for pair in pairs], [f"{pair.where}: {side}" for pair in pairs], tools
            )
            for side in ("chosen", "rejected")
        ]
        return [
            TokenizedPair(chosen, rejected, pair.where) for chosen, rejected, pair in zip(*sides, pairs, strict=True)
        ]

    def encode_rendered(
        self, texts: Sequence[str], *, add_special_tokens: bool, where: Sequence[str]
    ) -> list[TokenizedRow]:
        """Encode checked texts that somebody else has rendered: as they are, cut as a response without a prompt.

        Args:
            texts: N of them.
            add_special_tokens: those at a row's ends; False where the texts hold them.
            where: what an error calls each text.

        Raises:
            InputError: a text without tokens.
        """
        boundary = None if self.joining == "pair" else 0
        joined = [Joined(text, has_specials=not add_special_tokens, boundary=boundary) for text in texts]
        encoded = self.encodings(joined)
        return [self._cut(one, boundary, name) for one, name in zip(encoded, where, strict=True)]

    def encode_ids(self, ids: Sequence[Sequence[int]], where: Sequence[str]) -> list[TokenizedRow]:
        """Rows of token ids that somebody else has made: as they are, cut as a text that holds its special tokens.

        Args:
            ids: N rows of them.
            where: what an error calls each row.

        Raises:
            InputError: a row without tokens, or what is no id of the tokenizer's.
        """
        count = len(self.tokenizer)
        boundary = None if self.joining == "pair" else 0
        rows = []
        for own, name in zip(ids, where, strict=True):
            wrong = next((one for one in own if type(one) is not int or not 0 <= one < count), None)
            if wrong is not None:
                raise InputError(f"{name}: a token's id must be from 0 to {count - 1}, not {shown(wrong)}")
            same = [0] * len(own)
            encoding = SimpleNamespace(ids=list(own), type_ids=same, sequence_ids=same, offsets=[(0, 1)] * len(own))
            rows.append(self._cut(encoding, boundary, name))
        return rows

    def encode_responses(self, responses: Sequence[Text]) -> list[list[int]]:
        """Token ids of checked responses by themselves: whole, without special tokens."""
        plain = [as_plain(response, f"response {i + 1}") for i, response in enumerate(responses)]
        ids: list[list[int]] = self._called(plain, None, add_special_tokens=False)["input_ids"]
        return ids

    def _called(self, texts: list[str], partners: list[str] | None, add_special_tokens: bool) -> Any:
        # A fast tokenizer that another thread sets to truncate or to pad meanwhile raises "Already borrowed".
        with lock_of(self.tokenizer):
            return self.tokenizer(
                texts, partners, add_special_tokens=add_special_tokens, truncation=False, padding=False, verbose=False
            )

    def encodings(self, rows: Sequence[Joined]) -> list[Any]:
        """Encodings with offsets, of rows of a kind in one call."""
        found: list[Any] = [None] * len(rows)
        kinds = {(row.partner is None, row.has_specials) for row in rows}
        for is_single, has_specials in kinds:
            own = [
                i for i, row in enumerate(rows) if (row.partner is None, row.has_specials) == (is_single, has_specials)
            ]
            partners = None if is_single else [str(rows[i].partner) for i in own]
            encoded = self._called([rows[i].text for i in own], partners, add_special_tokens=not has_specials)
            for i, encoding in zip(own, encoded.encodings, strict=True):
                found[i] = encoding
        return found

    def parts(self, encoding: Any, boundary: int | None) -> list[int | None]:
        """Of each token 0 in the prompt, 1 in the response, and None for a special one at the row's ends."""
        if boundary is None:
            part: list[int | None] = encoding.sequence_ids
            return part
        ids, specials = encoding.ids, set(self.tokenizer.all_special_ids)
        ends = [i for i in (0, len(ids) - 1) if ids[i] in specials]
        return [None if i in ends else int(stop > boundary) for i, (_, stop) in enumerate(encoding.offsets)]

    def _cut(self, encoding: Any, boundary: int | None, where: str) -> TokenizedRow:
        ids, types = encoding.ids, encoding.type_ids
        uses_types = "token_type_ids" in self.tokenizer.model_input_names
        surplus = len(ids) - self.max_length
        if surplus > 0:
            part = self.parts(encoding, boundary)
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
        return TokenizedRow(list(ids), list(types) if uses_types else None, surplus > 0, where)


def _is_blank(response: Text) -> bool:
    if isinstance(response, str):
        return not response.strip()
    return not any((message.get("content") or "").strip() or message.get("tool_calls") for message in response)


def default_max_length(tokenizer: "PreTrainedTokenizerBase", max_position_embeddings: int | None) -> int:
    """The longest row that both tokenizer and model accept, at most `LONGEST_DEFAULT`.

    Raises:
        InputError: they accept too few tokens for any row.
    """
    limits = {
        "the tokenizer's model_max_length": int(tokenizer.model_max_length),
        "the model's max_position_embeddings": max_position_embeddings or LONGEST_DEFAULT,
    }
    for name, limit in limits.items():
        if limit < SHORTEST:
            raise InputError(f"{name} is {limit}, and a row needs at least {SHORTEST} tokens: give max_length")
    return min(*limits.values(), LONGEST_DEFAULT)
