"""Prompts and responses to token ids."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bayesrm_fast.errors import InputError
from bayesrm_fast.locks import lock_of
from bayesrm_fast.text.examples import TokenizedPair, TokenizedRow
from bayesrm_fast.text.records import PreferencePair, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_DEFAULT = 4096
"""Where a model accepts more tokens than this, the default `max_length` stops here, so that memory stays bounded."""


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

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> None:
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

    def encode(
        self, prompts: Sequence[Text], responses: Sequence[Text], where: Sequence[str] | None = None
    ) -> list[TokenizedRow]:
        """Encode checked texts, `prompts[i]` with `responses[i]`; warn once where responses are empty.

        `where[i]` is what an error calls a row, by default its number.
        """
        where = where or [f"row {i + 1}" for i in range(len(prompts))]
        empty = [i for i, response in enumerate(responses) if isinstance(response, str) and not response.strip()]
        if empty:
            warnings.warn(
                f"{len(empty)} empty response(s), the first is {where[empty[0]]}; scored as they are",
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
            self._cut(encoded.encodings[i], None if boundaries is None else boundaries[i], where[i])
            for i in range(len(prompts))
        ]

    def encode_pairs(self, pairs: Sequence[PreferencePair]) -> list[TokenizedPair]:
        """Encode checked pairs."""
        prompts = [pair.prompt for pair in pairs]
        sides = [
            self.encode(prompts, [getattr(pair, side) for pair in pairs], [f"{pair.where}: {side}" for pair in pairs])
            for side in ("chosen", "rejected")
        ]
        return [
            TokenizedPair(chosen, rejected, pair.where) for chosen, rejected, pair in zip(*sides, pairs, strict=True)
        ]

    def _tokenize(self, texts: list[str], partners: list[str] | None = None, add_special_tokens: bool = True) -> Any:
        # A fast tokenizer that another thread sets to truncate or to pad meanwhile raises "Already borrowed".
        with lock_of(self.tokenizer):
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


def _as_plain(text: Text) -> str:
    if isinstance(text, str):
        return text
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in text)


def default_max_length(tokenizer: "PreTrainedTokenizerBase", max_position_embeddings: int | None) -> int:
    """The longest row that both tokenizer and model accept, at most `LONGEST_DEFAULT`."""
    return min(int(tokenizer.model_max_length), max_position_embeddings or LONGEST_DEFAULT, LONGEST_DEFAULT)
