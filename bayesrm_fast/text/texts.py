"""What counts as text: strings and conversations, out of whatever container they come in."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from bayesrm_fast.errors import InputError, named, shortened, shown

Text = str | Sequence[Mapping[str, Any]]
"""A string, or a list of chat messages `{"role": ..., "content": ...}`."""

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of the parts of a message's content that are text."""

UNREADABLE = re.compile("[\0\ud800-\udfff]")


def is_missing(value: Any) -> bool:
    """Whether a table has nothing there: None, or what pandas puts in its place."""
    return (
        value is None or (isinstance(value, float) and value != value) or type(value).__name__ in ("NAType", "NaTType")
    )


def described(value: Any) -> str:
    """What an error calls a value of the wrong kind."""
    return "null" if is_missing(value) else type(value).__name__


def as_list(values: Any) -> Any:
    """Arrays, tensors and columns of tables as lists; anything else as it is."""
    return values.tolist() if hasattr(values, "tolist") and not isinstance(values, str) else values


def is_list(values: Any) -> TypeGuard[Sequence[Any]]:
    """Whether these are values one after another, and not the characters of a text."""
    return isinstance(values, Sequence) and not isinstance(values, str | bytes)


def key_of(text: Text) -> str:
    """Equal for equal checked texts, in whatever order a message's columns come."""
    return text if isinstance(text, str) else json.dumps(text, sort_keys=True, default=str)


def as_plain(text: Text) -> str:
    """For a person to read: a string as it is, a conversation with its roles, a single message without."""
    if isinstance(text, str):
        return text
    contents = [str(message.get("content") or "") for message in text]
    if len(contents) == 1:
        return contents[0]
    return "\n".join(f"{message['role']}: {content}" for message, content in zip(text, contents, strict=True))


def checked_text(text: Any, where: str) -> Text:
    """A string, or messages whose content is one string each.

    The text parts of a content that is a list are joined, columns of a message that hold nothing are left out, and
    arrays are lists. A message that calls tools may have no content.

    Raises:
        InputError: anything else, a part that is no text, or characters that no tokenizer can read.
    """
    if isinstance(text, str):
        return _readable(text, where)
    messages = as_list(text)
    expected = f"{where} must be a string or a list of messages with string role and content"
    if not is_list(messages) or not all(isinstance(message, Mapping) for message in messages):
        raise InputError(f"{expected}, not {described(text)}")
    if not messages:
        raise InputError(f"{where} is an empty list of messages")
    return [
        _checked_message(message, f"{where}, message {number}", f"{expected}, and message {number}")
        for number, message in enumerate(messages, start=1)
    ]


def checked_tools(tools: Any, where: str) -> list[dict[str, Any]] | None:
    """The functions that a conversation may call, as a chat template takes them; None where there are none.

    Raises:
        InputError: neither a list of objects nor the JSON of one.
    """
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not valid JSON: {error}") from error
    tools = as_list(tools)
    if is_missing(tools) or (is_list(tools) and not tools) or (isinstance(tools, str) and not tools.strip()):
        return None
    if not is_list(tools) or not all(isinstance(tool, Mapping) for tool in tools):
        raise InputError(f"{where} must be a list of objects, not {described(tools)}")
    found: list[dict[str, Any]] = _plain(tools, where)
    return found


def _checked_message(message: Mapping[str, Any], where: str, expected: str) -> dict[str, Any]:
    found = {
        name: value for name, value in _plain(message, where).items() if name == "content" or not is_missing(value)
    }
    content = found.get("content")
    if is_list(content):
        found["content"] = "".join(_text_of(part, where) for part in content)
    elif is_missing(content) and found.get("tool_calls"):
        found |= {"content": None} if "content" in found else {}
    elif not isinstance(content, str):
        raise InputError(f"{expected} has {_shown(message, 'content', content)}")
    if not isinstance(found.get("role"), str):
        raise InputError(f"{expected} has {_shown(message, 'role', found.get('role'))}")
    return found


def _shown(message: Mapping[str, Any], name: str, value: Any) -> str:
    if name in message:
        return f"a {name} of {described(value)}"
    return f"no {name} (it has {named([shortened(str(key)) for key in message])})"


def _text_of(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else described(part)
    if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
        raise InputError(f"{where} has a part of type {shown(kind)}, and only text can be scored")
    text: str = part["text"]
    return text


def _plain(value: Any, where: str) -> Any:
    """The same of dicts, lists and readable strings.

    Raises:
        InputError: characters that no tokenizer can read, or values nested too deeply to be read at all.
    """
    try:
        return _copied(value, where)
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply") from error


def _copied(value: Any, where: str) -> Any:
    if isinstance(value, str):
        return _readable(value, where)
    if isinstance(value, Mapping):
        return {_copied(name, where): _copied(one, where) for name, one in value.items()}
    value = as_list(value)
    return [_copied(one, where) for one in value] if is_list(value) else value


def _readable(text: str, where: str) -> str:
    found = UNREADABLE.search(text)
    if found is None:
        return text
    if found.group() == "\0":
        raise InputError(f"{where} contains a NUL character")
    raise InputError(f"{where} contains a lone surrogate, which is not valid Unicode")
