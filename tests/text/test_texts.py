"""What is text, and what is refused by name."""

import json

import numpy as np
import pytest

from bayesrm_fast import InputError
from bayesrm_fast.text.texts import as_plain, checked_text, checked_tools

WHERE = "rows.jsonl, row 3: prompt"
MESSAGES = [{"role": "user", "content": "above all"}, {"role": "assistant", "content": "act"}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {"a": None}}}]}


def nested(depth):
    inner = "act"
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (3, "must be a string or a list of messages with string role and content, not int"),
        (None, "not null"),
        (float("nan"), "not null"),
        (b"act", "not bytes"),
        (["act"], "not list"),
        ([], "is an empty list of messages"),
        ([{"role": "user"}], "message 1 has no content"),
        ([{"content": "a"}], "message 1 has no role"),
        ([*MESSAGES, {"role": "user", "content": 3}], "message 3 has a content of int"),
        ([{"role": 3, "content": "a"}], "message 1 has a role of int"),
        ([{"role": "user", "content": None}], "message 1 has a content of null"),
        ([{"from": "human", "value": "a"}], r"message 1 has no content \(it has from, value\)"),
        ("a\0b", "contains a NUL character"),
        ("a\ud800b", "contains a lone surrogate"),
        ([{"role": "user", "content": "a\0"}], "message 1 contains a NUL"),
        ([{"role": "us\ud800er", "content": "a"}], "message 1 contains a lone surrogate"),
        ([{"role": "user", "content": "a", "name": "\udfff"}], "message 1 contains a lone surrogate"),
        ([{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}], "message 1 contains a lone surrogate"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "a part of type 'image_url'"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "a part of type 'text'"),
        ([{"role": "user", "content": [3]}], "a part of type 'int'"),
        ([{"role": "user", "content": "a", "tool_calls": nested(5000)}], "message 1 is nested too deeply"),
        ([{"role": "user", "content": nested(5000)}], "message 1 is nested too deeply"),
    ],
)
def test_what_is_no_text(text, message):
    with pytest.raises(InputError, match=message) as error:
        checked_text(text, WHERE)
    assert str(error.value).startswith(WHERE)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "above "}, {"type": "text", "text": "all", "image": None}],
        [{"type": "input_text", "text": "above "}, "all"],
        np.array([{"type": "text", "text": "above all"}], dtype=object),
        np.str_("above all"),
    ],
    ids=["parts", "parts of other names", "an array", "an array's string"],
)
def test_the_parts_of_a_content_are_joined(content):
    assert checked_text([{"role": "user", "content": content}], WHERE) == MESSAGES[:1]


def test_arrays_of_messages_are_messages_and_empty_columns_are_left_out():
    given = np.array([message | {"tool_calls": None, "name": float("nan")} for message in MESSAGES], dtype=object)
    assert checked_text(given, WHERE) == MESSAGES
    assert checked_text(tuple(MESSAGES), WHERE) == MESSAGES


def test_a_call_needs_no_content():
    assert checked_text([CALL], WHERE) == [CALL]
    without = {name: value for name, value in CALL.items() if name != "content"}
    assert checked_text([without], WHERE) == [without]
    with pytest.raises(InputError, match="message 1 has a content of null"):
        checked_text([CALL | {"tool_calls": []}], WHERE)


def test_tools_are_a_list_of_objects_or_its_json():
    tools = [{"type": "function", "function": {"name": "add"}}]
    for given in (tools, json.dumps(tools), np.array(tools, dtype=object)):
        assert checked_tools(given, "row 1: tools") == tools
    for given in (None, [], "", float("nan"), np.array([]), "[]", "null"):
        assert checked_tools(given, "row 1: tools") is None
    for given, message in (
        (3, "not int"),
        ("{", "not valid JSON"),
        (["add"], "not list"),
        ("[" * 10**5, "not valid JSON"),
    ):
        with pytest.raises(InputError, match=f"row 1: tools .*{message}"):
            checked_tools(given, "row 1: tools")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a\nb", "a\nb"),
        ([{"role": "assistant", "content": "a"}], "a"),
        ([{"role": "user", "content": "a"}, {"role": "assistant"}], "user: a\nassistant: "),
    ],
)
def test_a_conversation_is_shown_with_its_roles(text, plain):
    assert as_plain(text) == plain
