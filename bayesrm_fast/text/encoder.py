"""Prompts and responses to token ids."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bayesrm_fast.errors import InputError
from bayesrm_fast.locks import lock_of
from bayesrm_fast.text.examples import TokenizedPair, TokenizedRow
from bayesrm_fast.text.layouts import as_messages
from bayesrm_fast.text.records import PreferencePair, Tools
from bayesrm_fast.text.texts import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_DEFAULT = 4096
"""Where a model accepts more tokens than this, the default `max_length` stops here, so that memory stays bounded."""

SHORTEST = 8
"""The least `max_length`: special tokens and a little of prompt and response."""

TRAINED_JOINING = "trained_joining"
"""Key of a tokenizer's configuration that says how the rows were joined that a reward model was trained on."""

TRL = "trl"
"""Its value where trl trained: conversations by the chat template; plain text with nothing between, and eos after."""


@dataclass(frozen=True)
class _Joined:
    """One row's text before its tokens.

    Attributes:
        text: all of it, or of a tokenizer's own pair the first.
        partner: of a tokenizer's own pair the second.
        has_specials: whether the special tokens at a row's ends are there already.
        boundary: the character at which the response starts; None where the tokenizer knows.
    """

    text: str
    partner: str | None = None
    has_specials: bool = False
    boundary: int | None = None


class TextEncoder:
    """Turns a prompt and a response into one row of token ids.

    How a row is joined:

    1. A tokenizer with a chat template renders the prompt's and the response's messages with it; a plain prompt
       counts as the user's message and a plain response as the assistant's, and a dialogue of `Human:` and `Assistant:`
       as their messages.
    2. A tokenizer with a separator token (BERT, RoBERTa, DeBERTa) encodes prompt and response as its own pair.
    3. Any other tokenizer encodes the prompt, a blank line and the response as one text.

    In 2 and 3 a list of messages is written as `role: content` paragraphs. A response without a prompt is encoded as
    the one text that it is.

    How a row longer than `max_length` is cut: the longer of prompt and response is shortened first, until both are
    equally long. A decoder is scored at the response's end, so in 1 and 3 either loses its first tokens; an encoder is
    scored at its first token, so in 2 either loses its last ones. Special tokens at the row's ends are kept.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> None:
        if not tokenizer.is_fast:
            raise InputError(f"{type(tokenizer).__name__} is a slow tokenizer; load it with use_fast=True")
        if isinstance(max_length, bool) or not isinstance(max_length, int):
            raise InputError(f"max_length must be a whole number, not {max_length!r}")
        if max_length < SHORTEST:
            raise InputError(f"max_length must be at least {SHORTEST}, not {max_length}")
        self.tokenizer = tokenizer
        self.max_length = max_length

    @property
    def joining(self) -> str:
        """How rows are joined; asked anew, because a chat template may be set once the model is there."""
        if self.tokenizer.chat_template:
            return "chat template"
        return "blank line" if self.tokenizer.sep_token_id is None else "pair"

    @property
    def trained_joining(self) -> str | None:
        """How the rows were joined that the model was trained on, where its folder says so."""
        found: str | None = self.tokenizer.init_kwargs.get(TRAINED_JOINING)
        return found

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
        if not self._joins_as_trained(responses):
            warnings.warn(self._otherwise_joined(), stacklevel=3)
        self._warn_of_rendered(prompts, where)
        given = zip(prompts, responses, where, tools or [None] * len(prompts), strict=True)
        joined = [self._join(*one) for one in given]
        encoded = self._tokenize(joined)
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

    def encode_responses(self, responses: Sequence[Text]) -> list[list[int]]:
        """Token ids of checked responses by themselves: whole, without special tokens."""
        plain = [_as_plain(response, f"response {i + 1}") for i, response in enumerate(responses)]
        ids: list[list[int]] = self._called(plain, None, add_special_tokens=False)["input_ids"]
        return ids

    def _warn_of_rendered(self, prompts: Sequence[Text | None], where: Sequence[str]) -> None:
        specials = [re.escape(token) for token in self.tokenizer.all_special_tokens]
        if self.joining != "chat template" or not specials:
            return
        special = re.compile("|".join(specials))
        for prompt, name in zip(prompts, where, strict=True):
            found = special.search(prompt) if isinstance(prompt, str) else None
            if found is not None:
                warnings.warn(
                    f"{name}: the prompt holds the special token {found.group()}, as a text that the chat template has "
                    "rendered already; it is rendered again, as a user's message: give lists of messages",
                    stacklevel=4,
                )
                return

    def _joins_as_trained(self, responses: Sequence[Text]) -> bool:
        if self.trained_joining == TRL:
            return self.joining == "chat template" and not any(isinstance(text, str) for text in responses)
        return self.trained_joining in (None, self.joining)

    def _otherwise_joined(self) -> str:
        own = f"here prompt and response are joined by {self.joining}, so rewards may differ"
        if self.trained_joining != TRL:
            return f"the model was trained on rows joined by {self.trained_joining}, and {own}"
        return (
            "the model was trained by trl, which puts nothing between a plain prompt and response, and eos after them; "
            f"{own}. If it was trained on conversations, give lists of messages"
        )

    def _called(self, texts: list[str], partners: list[str] | None, add_special_tokens: bool) -> Any:
        # A fast tokenizer that another thread sets to truncate or to pad meanwhile raises "Already borrowed".
        with lock_of(self.tokenizer):
            return self.tokenizer(
                texts, partners, add_special_tokens=add_special_tokens, truncation=False, padding=False, verbose=False
            )

    def _join(self, prompt: Text | None, response: Text, where: str, tools: Tools | None) -> _Joined:
        if self.joining == "chat template" and prompt is not None:
            return self._render(as_messages(prompt, response), tools, where)
        if tools:
            raise InputError(f"{where} has tools, which need a tokenizer with a chat template")
        answer = _as_plain(response, where)
        if prompt is None:
            start = self.tokenizer.bos_token
            has_specials = self.joining == "chat template" and bool(start) and answer.startswith(str(start))
            return _Joined(answer, has_specials=has_specials, boundary=None if self.joining == "pair" else 0)
        front = _as_plain(prompt, where)
        if self.joining == "pair":
            return _Joined(front, answer)
        return _Joined(f"{front}\n\n{answer}", boundary=len(front) + 2)

    def _tokenize(self, rows: Sequence[_Joined]) -> list[Any]:
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

    def _render(self, messages: tuple[list[Any], list[Any]], tools: Tools | None, where: str) -> _Joined:
        asked, given = messages

        def rendered(messages: list[Any], **options: Any) -> str:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))

        calls = any(message.get("tool_calls") for message in asked + given)
        try:
            whole = rendered(asked + given, tools=tools)
            without_tools = rendered(asked + given) if tools else None
            without_calls = rendered([_without_calls(m) for m in asked + given], tools=tools) if calls else None
        except Exception as error:  # jinja's errors are those of whoever wrote the template
            raise InputError(f"{where}: the tokenizer's chat template does not take these messages: {error}") from error
        for name, text in (("tools", without_tools), ("tool_calls", without_calls)):
            if text == whole:
                raise InputError(f"{where} has {name}, which the tokenizer's chat template leaves out")
        try:
            front = rendered(asked, tools=tools, add_generation_prompt=True)
        except Exception:  # a template may refuse a conversation that ends there; then all of it counts as the response
            front = ""
        shared = next((i for i, (a, b) in enumerate(zip(front, whole, strict=False)) if a != b), len(front))
        return _Joined(whole, has_specials=True, boundary=shared)

    def _cut(self, encoding: Any, boundary: int | None, where: str) -> TokenizedRow:
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
        return TokenizedRow(list(ids), list(types) if uses_types else None, surplus > 0, where)


def _is_blank(response: Text) -> bool:
    if isinstance(response, str):
        return not response.strip()
    return not any((message.get("content") or "").strip() or message.get("tool_calls") for message in response)


def _without_calls(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "tool_calls"}


def _as_plain(text: Text, where: str) -> str:
    if isinstance(text, str):
        return text
    if any(message.get("tool_calls") for message in text):
        raise InputError(f"{where} has tool_calls, which need a tokenizer with a chat template")
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in text)


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
