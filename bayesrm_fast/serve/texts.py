"""The texts of a request: how many tokens they may have, and the rows that they make."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bayesrm_fast.errors import InputError
from bayesrm_fast.reward_model import BayesianRewardModel
from bayesrm_fast.text.examples import TokenizedRow
from bayesrm_fast.text.records import checked_rows
from bayesrm_fast.text.texts import Text, as_list, checked_text, described, is_list

BYTES_A_TOKEN = 4
"""Of UTF-8 text: by which its tokens are reckoned until they are known. A token has hardly ever less than a byte."""


class Texts(ABC):
    """Rows to be scored, as they were given and so perhaps no texts at all."""

    @abstractmethod
    def lengths(self) -> list[int]:
        """Bytes of each row, about."""

    @abstractmethod
    def tokenized(self, rm: BayesianRewardModel) -> list[TokenizedRow]:
        """The rows.

        Raises:
            InputError: text that cannot be read.
        """

    def tokens(self, max_length: int) -> int:
        """About how many, before they are known; at least 1."""
        return max(sum(min(length // BYTES_A_TOKEN, max_length) for length in self.lengths()), 1)


@dataclass(frozen=True)
class Responses(Texts):
    """One prompt's responses."""

    prompt: Any
    responses: Any

    def lengths(self) -> list[int]:
        """See `Texts`."""
        prompt, responses = _bytes(self.prompt), as_list(self.responses)
        return [prompt + _bytes(response) for response in responses] if is_list(responses) else []

    def checked(self) -> tuple[list[Text], list[Text]]:
        """The prompt of each response, and the responses; raises InputError for what is neither."""
        prompt, responses = checked_text(self.prompt, "prompt"), as_list(self.responses)
        if not is_list(responses):
            raise InputError(f"responses must be a list, not {described(responses)}")
        return checked_rows([prompt] * len(responses), responses)

    def tokenized(self, rm: BayesianRewardModel) -> list[TokenizedRow]:
        """See `Texts`."""
        return _encoded(rm, *self.checked())


@dataclass(frozen=True)
class Rows(Texts):
    """Responses, each to a prompt of its own."""

    prompts: Any
    responses: Any

    def lengths(self) -> list[int]:
        """See `Texts`."""
        prompts, responses = as_list(self.prompts), as_list(self.responses)
        if not (is_list(prompts) and is_list(responses)):
            return []
        return [_bytes(prompt) + _bytes(response) for prompt, response in zip(prompts, responses, strict=False)]

    def tokenized(self, rm: BayesianRewardModel) -> list[TokenizedRow]:
        """See `Texts`."""
        return _encoded(rm, *checked_rows(self.prompts, self.responses))


def _encoded(rm: BayesianRewardModel, prompts: list[Text], responses: list[Text]) -> list[TokenizedRow]:
    return rm.encoder.encode(prompts, responses, numbered("response", len(prompts)))


@dataclass(frozen=True)
class Rendered(Texts):
    """Texts that somebody else has rendered, or the token ids that somebody else has made of them."""

    texts: Any
    add_special_tokens: bool

    def lengths(self) -> list[int]:
        """See `Texts`."""
        if not is_list(self.texts):
            return []
        return [BYTES_A_TOKEN * len(text) if is_list(text) else _bytes(text) for text in self.texts]

    def tokenized(self, rm: BayesianRewardModel) -> list[TokenizedRow]:
        """See `Texts`."""
        if not is_list(self.texts):
            raise InputError(f"texts must be a list, not {described(self.texts)}")
        if not self.texts:
            raise InputError("there is nothing to score: the list is empty")
        where = numbered("text", len(self.texts))
        if all(is_list(text) for text in self.texts):
            return rm.encoder.encode_ids(self.texts, where)
        for text, name in zip(self.texts, where, strict=True):
            if not isinstance(text, str):
                raise InputError(f"{name} must be a string, not {described(text)}")
            checked_text(text, name)
        return rm.encoder.encode_rendered(self.texts, add_special_tokens=self.add_special_tokens, where=where)


def numbered(name: str, count: int) -> list[str]:
    """What errors call the rows of a request."""
    return [f"{name} {i + 1}" for i in range(count)]


def _bytes(text: Any) -> int:
    if isinstance(text, str):
        return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    if not is_list(text):
        return 0
    contents = [message.get("content") for message in text if isinstance(message, Mapping)]
    parts = [part for content in contents for part in (content if is_list(content) else [content])]
    held = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return sum(_bytes(part) for part in held if isinstance(part, str))
