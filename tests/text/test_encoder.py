"""How a prompt and a response become one row, and what is no text."""

import pytest
from tiny import tiny_tokenizer

from bayesrm_fast import InputError, PreferencePair
from bayesrm_fast.text.encoder import TextEncoder, default_max_length
from bayesrm_fast.text.records import candidate_sets, check_text, pairs_within_prompts, preference_pairs

CHAT = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}"


def tokens(tokenizer, row):
    return tokenizer.convert_ids_to_tokens(row.input_ids)


def test_decoder_joins_with_a_blank_line():
    tokenizer = tiny_tokenizer("llama")
    (row,) = TextEncoder(tokenizer, 64).encode(["above all"], ["act again"])
    assert row.input_ids == tokenizer("above all\n\nact again").input_ids
    assert (row.token_type_ids, row.truncated) == (None, False)


def test_encoder_uses_its_own_pair():
    tokenizer = tiny_tokenizer("bert")
    (row,) = TextEncoder(tokenizer, 64).encode(["above all"], ["act again"])
    assert tokens(tokenizer, row) == ["<s>", "above", "all", "</s>", "act", "again", "</s>"]
    assert row.token_type_ids == [0, 0, 0, 0, 1, 1, 1]


def test_chat_template_renders_strings_and_messages_alike():
    tokenizer = tiny_tokenizer("llama", chat_template=CHAT)
    encoder = TextEncoder(tokenizer, 64)
    plain = encoder.encode(["above all"], ["act again"])
    messages = encoder.encode(
        [[{"role": "user", "content": "above all"}]], [[{"role": "assistant", "content": "act again"}]]
    )
    assert plain == messages
    assert "again" in tokens(tokenizer, plain[0])


@pytest.mark.parametrize("chat", [False, True])
def test_long_rows_of_a_decoder_lose_the_front_of_the_longer_text(chat):
    tokenizer = tiny_tokenizer("llama", CHAT if chat else None)
    encoder = TextEncoder(tokenizer, 16)
    prompt = " ".join(["alone"] * 30 + ["art"])
    (short, long) = encoder.encode([prompt, prompt], ["again almost", "already " * 50 + "also"])
    assert [(row.truncated, len(row.input_ids)) for row in (short, long)] == [(True, 16)] * 2
    short_tokens, long_tokens = tokens(tokenizer, short), tokens(tokenizer, long)
    assert {"art", "again", "almost"} <= set(short_tokens)
    assert {"art", "also"} <= set(long_tokens)
    if not chat:
        assert short_tokens[0] == "<s>"
        assert short_tokens[-3:] == ["art", "again", "almost"]
        assert long_tokens[-1] == "also"
        assert long_tokens.index("art") == 7  # half of the 15 places that <s> leaves


def test_long_rows_of_an_encoder_lose_the_end_of_the_longer_text():
    tokenizer = tiny_tokenizer("bert")
    encoder = TextEncoder(tokenizer, 16)
    prompt = " ".join(["art"] + ["alone"] * 30)
    (short, long) = encoder.encode([prompt, prompt], ["again almost", "also" + " already" * 50])
    assert tokens(tokenizer, short) == ["<s>", "art", *["alone"] * 10, "</s>", "again", "almost", "</s>"]
    assert tokens(tokenizer, long) == ["<s>", "art", *["alone"] * 5, "</s>", "also", *["already"] * 6, "</s>"]
    assert long.token_type_ids == [0] * 8 + [1] * 8
    # tokenizers' own rule, on which encoders are trained
    own = tokenizer(prompt, "again almost", truncation="longest_first", max_length=16)
    assert short.input_ids == own["input_ids"]


def test_a_response_of_a_hundred_thousand_words_is_cut():
    (row,) = TextEncoder(tiny_tokenizer("bert"), 64).encode(["above"], ["again " * 100_000])
    assert row.truncated
    assert len(row.input_ids) == 64


def test_an_empty_response_is_encoded_with_a_warning():
    encoder = TextEncoder(tiny_tokenizer("bert"), 64)
    with pytest.warns(UserWarning, match=r"1 empty response\(s\), the first is row 2"):
        rows = encoder.encode(["above", "above"], ["again", "  "])
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (3, "must be a string or a list of messages"),
        (None, "not null"),
        ([], "empty list of messages"),
        ([{"role": "user"}], "with string role and content"),
        ("a\0b", "NUL"),
        ("a\ud800b", "lone surrogate"),
        ([{"role": "user", "content": "a\0"}], "NUL"),
    ],
)
def test_what_is_no_text(text, message):
    with pytest.raises(InputError, match=message) as error:
        check_text(text, "rows.jsonl, row 3: prompt")
    assert str(error.value).startswith("rows.jsonl, row 3: prompt")


def test_pairs_from_dicts_records_and_datasets():
    datasets = pytest.importorskip("datasets", reason="the extra `train` is not installed")
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    expected = [PreferencePair("a", "b", "c")]
    assert preference_pairs([row]) == expected
    assert preference_pairs(expected) == expected
    assert preference_pairs(datasets.Dataset.from_list([row])) == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no rows"),
        (["text"], "row 1 must be an object"),
        ([{"prompt": "a", "chosen": "b"}], "row 1 has no column 'rejected'"),
        (
            [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": 5, "rejected": "c"}],
            "row 2: chosen",
        ),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], "row 1: chosen and rejected are equal"),
    ],
)
def test_bad_pairs_are_named_by_row(rows, message):
    with pytest.raises(InputError, match=message):
        preference_pairs(rows, "pairs.jsonl")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "responses": "b"}], "responses must be a list"),
        ([{"prompt": "a", "responses": []}], "responses is empty"),
        ([{"prompt": "a", "responses": ["b", None]}], r"responses\[1\]"),
    ],
)
def test_bad_candidates_are_named_by_row(rows, message):
    with pytest.raises(InputError, match=message):
        candidate_sets(rows)


def test_default_length_is_what_tokenizer_and_model_accept():
    tokenizer = tiny_tokenizer("llama")
    assert default_max_length(tokenizer, 32) == 32
    assert default_max_length(tokenizer, None) == 64
    tokenizer.model_max_length = 10**30
    assert default_max_length(tokenizer, 131072) == 4096


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_candidates_are_paired_within_their_prompt(count):
    prompts = ["first"] * count + ["second"] * 2
    responses = [f"response {i}" for i in range(count)] + ["yes", "no"]
    pairs = pairs_within_prompts(prompts, responses)
    assert {frozenset((pair.chosen, pair.rejected)) for pair in pairs if pair.prompt == "second"} == {
        frozenset(("yes", "no"))
    }
    first = [pair for pair in pairs if pair.prompt == "first"]
    assert len(first) == (count + 1) // 2
    assert {text for pair in first for text in (pair.chosen, pair.rejected)} == set(responses[:count])
    assert all(pair.chosen != pair.rejected for pair in first)
    assert pairs == pairs_within_prompts(prompts, responses)
