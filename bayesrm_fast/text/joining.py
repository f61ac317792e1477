"""How a prompt and a response become one text, as they did when the reward model was trained."""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from bayesrm_fast.errors import InputError
from bayesrm_fast.text.layouts import as_messages
from bayesrm_fast.text.records import Tools
from bayesrm_fast.text.texts import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

JoiningName = Literal["template", "pair", "blank line", "concatenate"]
Joining = JoiningName | Callable[[Text, Text], str]

TRAINED_JOINING = "trained_joining"
"""Key of a tokenizer's configuration that says how the rows were joined that a reward model was trained on."""

TRAINED_ON_MESSAGES = "trained_on_messages"
"""Key that says whether any of those rows was a conversation."""

TRL = "trl"
"""The first one's value where trl trained: conversations by the chat template; plain text with nothing between, and eos
after."""

A_FUNCTION = "a function"
"""What records and warnings call a joining of one's own."""


@dataclass(frozen=True)
class Joined:
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


class Joiner:
    """Joins rows as it is told, else as the model was trained where its files say so, else as the tokenizer suggests.

    - "template": the tokenizer's chat template renders the prompt's and the response's messages; a plain prompt counts
      as the user's message and a plain response as the assistant's, and a dialogue of `Human:` and `Assistant:` as
      their messages.
    - "pair": the tokenizer's own pair of two texts (BERT, RoBERTa, DeBERTa).
    - "blank line": prompt, a blank line and response.
    - "concatenate": prompt and response with nothing between.
    - a function of prompt and response, as they were given, that returns the row's text. One that begins with the
      tokenizer's bos or cls has its special tokens already, and is given no others.

    Without an instruction a tokenizer with a chat template has "template", one with a separator token "pair", any other
    "blank line". A model that trl trained has "template" for conversations; for plain text "concatenate", with eos.

    But for "template" and a function, a list of messages is written as `role: content` paragraphs. A response without
    a prompt is the one text that it is.

    Args:
        tokenizer: of the model.
        joining: None for what its files say.
        appends_eos: whether the tokenizer's eos ends a row that does not end in it yet; None for what its files say.

    Raises:
        InputError: an unknown joining, or an eos that the tokenizer, or a pair or a template, has no place for.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", joining: Joining | None = None, appends_eos: bool | None = None
    ) -> None:
        if joining is not None and not callable(joining) and joining not in get_args(JoiningName):
            names = ", ".join(get_args(JoiningName))
            raise InputError(f"joining must be {names} or a function of prompt and response, not {joining!r}")
        if appends_eos and joining in (None, "template", "pair"):
            raise InputError("appends_eos goes with joining='concatenate', 'blank line' or a function")
        if appends_eos and tokenizer.eos_token is None:
            raise InputError("appends_eos needs a tokenizer with an eos token")
        self.tokenizer = tokenizer
        self.joining = joining
        self.appends_eos = appends_eos

    @property
    def recorded(self) -> str | None:
        """What a record says of it."""
        return A_FUNCTION if callable(self.joining) else self.joining

    def of(self, is_plain: bool = True) -> Joining:
        """How rows of plain text, or others, are joined; asked anew, because a chat template may be set any time."""
        if self.joining is not None:
            return self.joining
        trained = self._trained(is_plain)
        return trained if trained is not None and self._absent(trained) is None else self._suggested()

    def _suggested(self) -> JoiningName:
        if self.tokenizer.chat_template:
            return "template"
        return "blank line" if self.tokenizer.sep_token_id is None else "pair"

    def _trained(self, is_plain: bool) -> JoiningName | None:
        noted = self.tokenizer.init_kwargs.get(TRAINED_JOINING)
        if noted == TRL:
            return "concatenate" if is_plain else "template"
        return noted if noted in get_args(JoiningName) else None

    def _absent(self, joining: Joining) -> str | None:
        """What the tokenizer would need for it."""
        if joining == "template" and not self.tokenizer.chat_template:
            return "a chat template"
        if joining == "pair" and self.tokenizer.sep_token_id is None:
            return "a separator token"
        return None

    def warn_of_another(self, are_plain: Sequence[bool], stacklevel: int) -> None:
        """Say once where rows are joined otherwise than they were for training."""
        for is_plain in sorted(set(are_plain)):
            trained, here = self._trained(is_plain), self.of(is_plain)
            if trained not in (None, here):
                warnings.warn(
                    f"the model was trained on rows joined by {trained!r}, and here prompt and response are joined by "
                    f"{A_FUNCTION if callable(here) else repr(here)}, so rewards may differ",
                    stacklevel=stacklevel + 1,
                )
                return
        knows_messages = self.joining is not None or self.tokenizer.init_kwargs.get(TRAINED_ON_MESSAGES)
        if not all(are_plain) and not knows_messages and self.of(is_plain=False) != "template":
            warnings.warn(
                "messages are written as 'role: content' paragraphs, because the tokenizer has no chat template; a "
                "model that was trained on plain text may score them otherwise: give strings, or a joining of your own",
                stacklevel=stacklevel + 1,
            )

    def join(self, prompt: Text | None, response: Text, where: str, tools: Tools | None) -> Joined:
        """One row.

        Raises:
            InputError: messages or tools that cannot be written so, or a function that gives no text.
        """
        is_plain = is_plain_text(prompt, response)
        joining = self.of(is_plain)
        if (needed := self._absent(joining)) is not None:
            raise InputError(f"joining={joining!r} needs a tokenizer with {needed}")
        if joining == "template" and prompt is not None:
            return self._render(as_messages(prompt, response), tools, where)
        if tools:
            raise InputError(f"{where} has tools, which need a tokenizer with a chat template")
        if callable(joining) and prompt is not None:
            text = joining(prompt, response)
            if not isinstance(text, str):
                raise InputError(f"{where}: the joining gave {type(text).__name__}, and must give a string")
            start = text.rfind(response) if isinstance(response, str) else 0
            firsts = tuple(filter(None, (self.tokenizer.bos_token, self.tokenizer.cls_token)))
            return Joined(self._ended(text, is_plain), has_specials=text.startswith(firsts), boundary=max(start, 0))
        answer = as_plain(response, where)
        if prompt is None:
            bos = self.tokenizer.bos_token
            has_specials = joining == "template" and bool(bos) and answer.startswith(str(bos))
            boundary = None if joining == "pair" else 0
            return Joined(self._ended(answer, is_plain), has_specials=has_specials, boundary=boundary)
        front = as_plain(prompt, where)
        if joining == "pair":
            return Joined(front, answer)
        between = "" if joining == "concatenate" else "\n\n"
        return Joined(self._ended(f"{front}{between}{answer}", is_plain), boundary=len(front) + len(between))

    def _ended(self, text: str, is_plain: bool) -> str:
        by_files = self.joining is None and is_plain and self.tokenizer.init_kwargs.get(TRAINED_JOINING) == TRL
        eos = self.tokenizer.eos_token
        if eos is None or not (by_files if self.appends_eos is None else self.appends_eos):
            return text
        return text if text.endswith(eos) else text + eos

    def _render(self, messages: tuple[list[Any], list[Any]], tools: Tools | None, where: str) -> Joined:
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
        return Joined(whole, has_specials=True, boundary=shared)

    def warn_of_rendered(self, prompts: Sequence[Text | None], where: Sequence[str], stacklevel: int) -> None:
        """Say once where a chat template is given a text that it has rendered before."""
        specials = [re.escape(token) for token in self.tokenizer.all_special_tokens]
        if self.of() != "template" or not specials:
            return
        special = re.compile("|".join(specials))
        for prompt, name in zip(prompts, where, strict=True):
            found = special.search(prompt) if isinstance(prompt, str) else None
            if found is not None:
                warnings.warn(
                    f"{name}: the prompt holds the special token {found.group()}, as a text that the chat template has "
                    "rendered already; it is rendered again, as a user's message: give lists of messages",
                    stacklevel=stacklevel + 1,
                )
                return


def is_plain_text(prompt: Text | None, response: Text) -> bool:
    """Whether neither is a conversation."""
    return isinstance(response, str) and isinstance(prompt, str | None)


def as_plain(text: Text, where: str) -> str:
    """A string as it is, messages as `role: content` paragraphs; raises InputError where they call tools."""
    if isinstance(text, str):
        return text
    if any(message.get("tool_calls") for message in text):
        raise InputError(f"{where} has tool_calls, which need a tokenizer with a chat template")
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in text)


def _without_calls(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "tool_calls"}
