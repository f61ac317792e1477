"""Texts of requests, before and after they have tokens."""

import pytest
from tiny import tiny_adapter, tiny_tokenizer

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.serve.texts import Rendered, Responses, Rows

MESSAGES = [{"role": "user", "content": "12345678"}, {"role": "user", "content": [{"type": "text", "text": "1234"}]}]


@pytest.mark.parametrize(
    ("texts", "tokens"),
    [
        (Responses("12345678", ["1234", "12345678"]), 3 + 4),
        (Responses("ééé", ["é"]), 2),
        (Responses(MESSAGES, ["1234"]), 4),
        (Responses("a" * 1000, ["", ""]), 2 * 50),
        (Responses("", []), 1),
        (Responses("a", None), 1),
        (Responses(None, [3, "12345678", [None, {"content": None}]]), 2),
        (Rendered(["12345678", "\ud800" * 4], True), 2 + 3),
        (Rendered("12345678", True), 1),
        (Rendered([[5, 6, 7], [8]], True), 4),
        (Rendered([[5] * 1000], True), 50),
        (Rows(["12345678", "1234"], ["1234", "12345678"]), 3 + 3),
        (Rows(["12345678"], "1234"), 1),
    ],
)
def test_tokens_are_reckoned_by_bytes_whatever_is_given(texts, tokens):
    assert texts.tokens(50) == tokens


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_rendered_texts_are_tokenized_as_they_are(architecture):
    rm = BayesianRewardModel(tiny_adapter(architecture), tiny_tokenizer(architecture), max_length=8)
    text = "a ability able <s> about"
    for specials in (True, False):
        (row,) = Rendered([text], specials).tokenized(rm)
        assert row.input_ids == rm.tokenizer(text, add_special_tokens=specials)["input_ids"][:8]
        assert not row.truncated


@pytest.mark.parametrize(("architecture", "kept"), [("llama", slice(-7, None)), ("bert", slice(0, 6))])
def test_rendered_texts_are_cut_where_a_response_is(architecture, kept):
    rm = BayesianRewardModel(tiny_adapter(architecture), tiny_tokenizer(architecture), max_length=8)
    text = "a ability able about above accept across act action add"
    (row,) = Rendered([text], True).tokenized(rm)
    alone = rm.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert row.truncated
    assert [i for i in row.input_ids if i > 3] == alone[kept]
    assert len(row.input_ids) == 8
