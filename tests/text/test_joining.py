"""How a prompt and a response become one text."""

import pytest
from tiny import tiny_tokenizer

from bayesrm_fast.errors import InputError
from bayesrm_fast.text.encoder import TextEncoder
from bayesrm_fast.text.joining import Joiner

MESSAGES = [{"role": "user", "content": "above"}]


def joined(*options, prompt="above", response="again", tokenizer="llama"):
    return Joiner(tiny_tokenizer(tokenizer), *options).join(prompt, response, "row 1", None)


@pytest.mark.parametrize(
    ("options", "text", "boundary"),
    [
        (("blank line",), "above\n\nagain", 7),
        (("concatenate",), "aboveagain", 5),
        (("concatenate", True), "aboveagain</s>", 5),
        (("blank line", True), "above\n\nagain</s>", 7),
        ((lambda prompt, response: f"Q: {prompt} A: {response}!",), "Q: above A: again!", 12),
        ((lambda prompt, response: "nothing of it", True), "nothing of it</s>", 0),
    ],
)
def test_a_row_is_joined_as_it_is_told(options, text, boundary):
    found = joined(*options)
    assert (found.text, found.boundary, found.partner) == (text, boundary, None)


def test_eos_ends_a_row_once_and_a_whole_text_too():
    assert joined("concatenate", True, response="again</s>").text == "aboveagain</s>"
    assert joined("concatenate", True, prompt=None).text == "again</s>"


def test_a_function_is_given_messages_as_they_are():
    seen = []
    joined(lambda prompt, response: seen.append((prompt, response)) or "text", prompt=MESSAGES)
    assert seen == [(MESSAGES, "again")]


@pytest.mark.parametrize(("architecture", "last"), [("llama", ""), ("bert", " </s>")])
def test_a_function_that_writes_the_special_tokens_is_given_no_others(architecture, last):
    rows = [
        TextEncoder(tiny_tokenizer(architecture), 64, joining).encode(["above"], ["again"])[0].input_ids
        for joining in (
            lambda prompt, response: f"{prompt} {response}",
            lambda prompt, response: f"<s> {prompt} {response}{last}",
        )
    ]
    assert rows[0] == rows[1]


def test_what_trl_trained_ends_in_eos_where_text_is_plain_alone():
    tokenizer = tiny_tokenizer("llama")
    tokenizer.init_kwargs["trained_joining"] = "trl"
    joiner = Joiner(tokenizer)
    assert joiner.join("above", "again", "row 1", None).text == "aboveagain</s>"
    assert joiner.join(None, "again", "row 1", None).text == "again</s>"
    assert joiner.join(MESSAGES, "again", "row 1", None).text == "user: above\n\nagain"
    assert Joiner(tokenizer, "concatenate").join("above", "again", "row 1", None).text == "aboveagain"


@pytest.mark.parametrize(
    ("options", "tokenizer", "message"),
    [
        (("spaces",), "llama", "joining must be template, pair, blank line, concatenate or a function of .*'spaces'"),
        ((None, True), "llama", "appends_eos goes with"),
        (("pair", True), "bert", "appends_eos goes with"),
        (("concatenate", True), "bert", "appends_eos needs a tokenizer with an eos token"),
        (("template",), "llama", "joining='template' needs a tokenizer with a chat template"),
        (("pair",), "llama", "joining='pair' needs a tokenizer with a separator token"),
        ((lambda prompt, response: None,), "llama", "row 1: the joining gave NoneType, and must give a string"),
    ],
)
def test_what_cannot_join_is_refused(options, tokenizer, message):
    with pytest.raises(InputError, match=message):
        joined(*options, tokenizer=tokenizer)


def test_a_cut_keeps_the_eos_and_the_end_of_the_response():
    encoder = TextEncoder(tiny_tokenizer("llama"), 8, "concatenate", True)
    (row,) = encoder.encode(["above " * 20], ["again " * 20])
    assert row.is_truncated
    assert len(row.input_ids) == 8
    assert row.input_ids[-1] == encoder.tokenizer.eos_token_id
