"""How a prompt and a response become one row."""

import pytest
from tiny import tiny_tokenizer

from bayesrm_fast import InputError, PreferencePair
from bayesrm_fast.text.encoder import TextEncoder, default_max_length

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


def test_responses_by_themselves_are_whole_and_bare():
    tokenizer = tiny_tokenizer("bert")
    responses = ["act " * 20, [{"role": "able", "content": "again all"}], ""]
    ids = TextEncoder(tokenizer, 8).encode_responses(responses)
    assert [tokenizer.convert_ids_to_tokens(one) for one in ids[:2]] == [
        ["act"] * 20,
        ["able", "<unk>", "again", "all"],
    ]
    assert ids[2] == []


def test_default_length_is_what_tokenizer_and_model_accept():
    tokenizer = tiny_tokenizer("llama")
    assert default_max_length(tokenizer, 32) == 32
    assert default_max_length(tokenizer, None) == 64
    tokenizer.model_max_length = 10**30
    assert default_max_length(tokenizer, 131072) == 4096


def test_where_a_row_comes_from_stays_with_it():
    encoder = TextEncoder(tiny_tokenizer("llama"), 64)
    assert [row.where for row in encoder.encode(["above"] * 2, ["again", "all"])] == ["row 1", "row 2"]
    (pair,) = encoder.encode_pairs([PreferencePair("above", "again", "all", "pairs.jsonl, row 9")])
    names = (pair.where, pair.chosen.where, pair.rejected.where)
    assert names == ("pairs.jsonl, row 9", "pairs.jsonl, row 9: chosen", "pairs.jsonl, row 9: rejected")
    with pytest.warns(UserWarning, match="the first is pairs.jsonl, row 9: rejected"):
        encoder.encode_pairs([PreferencePair("above", "again", "", "pairs.jsonl, row 9")])


def test_messages_without_a_chat_template_are_paragraphs():
    tokenizer = tiny_tokenizer("llama")
    messages = [{"role": "above", "content": "all"}, {"role": "act", "content": "again"}]
    (row,) = TextEncoder(tokenizer, 64).encode([messages], ["able"])
    assert row.input_ids == tokenizer("above: all\n\nact: again\n\nable").input_ids


def test_messages_that_a_template_does_not_take_are_refused():
    template = "{% for m in messages %}{{ raise_exception('no ' + m['role']) }}{% endfor %}"
    encoder = TextEncoder(tiny_tokenizer("llama", chat_template=template), 64)
    with pytest.raises(InputError, match="chat template does not take these messages: no user"):
        encoder.encode(["above"], ["again"])


def test_a_slow_tokenizer_and_a_short_length_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="Slow is a slow tokenizer"):
        TextEncoder(Slow(), 64)
    with pytest.raises(InputError, match="at least 8, not 7"):
        TextEncoder(tiny_tokenizer("llama"), 7)
