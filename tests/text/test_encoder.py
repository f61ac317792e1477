"""How a prompt and a response become one row."""

import re

import pytest
from tiny import tiny_tokenizer

from bayesrm_fast import InputError, PreferencePair
from bayesrm_fast.text.encoder import TextEncoder, default_max_length
from bayesrm_fast.text.records import all_pairs

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


WITH_TOOLS = (
    "{% for t in tools or [] %}{{ t['function']['name'] }} {% endfor %}"
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] or '' }}"
    "{% for c in m['tool_calls'] or [] %} {{ c['function']['name'] }}{% endfor %} </s> {% endfor %}"
)
TOOLS = [{"type": "function", "function": {"name": "add"}}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "age", "arguments": {}}}]}


def test_tools_and_their_calls_are_rendered_by_the_template():
    tokenizer = tiny_tokenizer("llama", WITH_TOOLS)
    asked = [{"role": "user", "content": "above"}]
    (row,) = TextEncoder(tokenizer, 64).encode([asked], [[CALL]], tools=[TOOLS])
    whole = tokenizer.apply_chat_template([*asked, CALL], tools=TOOLS, tokenize=False)
    assert row.input_ids == tokenizer(whole, add_special_tokens=False).input_ids
    assert {"add", "age"} <= set(tokens(tokenizer, row))
    pairs = all_pairs([{"prompt": asked, "chosen": [CALL], "rejected": "all", "tools": TOOLS}])
    (pair,) = TextEncoder(tokenizer, 64).encode_pairs(pairs)
    assert pair.chosen == row
    assert tokens(tokenizer, pair.rejected)[0] == "add"


@pytest.mark.parametrize(
    ("template", "response", "tools", "message"),
    [
        (None, "again", TOOLS, "row 1 has tools, which need a tokenizer with a chat template"),
        (None, [CALL], None, "row 1 has tool_calls, which need a tokenizer with a chat template"),
        (CHAT, "again", TOOLS, "row 1 has tools, which the tokenizer's chat template leaves out"),
        (CHAT, [CALL], None, "row 1 has tool_calls, which the tokenizer's chat template leaves out"),
    ],
)
def test_tools_are_never_dropped(template, response, tools, message):
    with pytest.raises(InputError, match=message):
        TextEncoder(tiny_tokenizer("llama", template), 64).encode(["above"], [response], tools=[tools])


def test_a_template_that_takes_no_conversation_without_an_answer_will_do():
    template = "{{ raise_exception('no answer') if messages | length < 2 }}" + CHAT
    tokenizer = tiny_tokenizer("llama", template)
    (row,) = TextEncoder(tokenizer, 64).encode(["above"], ["again"])
    assert tokens(tokenizer, row) == ["<unk>", "<unk>", "above", "</s>", "<unk>", "<unk>", "again", "</s>"]


def test_a_row_without_tokens_is_refused_by_name():
    tokenizer = tiny_tokenizer("llama", "{{ messages[0]['content'] }}")
    with (
        pytest.raises(InputError, match=r"^candidates, row 7 has no tokens"),
        pytest.warns(UserWarning, match="empty"),
    ):
        TextEncoder(tokenizer, 64).encode(["", "above"], ["", "again"], ["candidates, row 7", "candidates, row 8"])


def test_a_conversation_without_content_is_an_empty_response():
    encoder = TextEncoder(tiny_tokenizer("llama", CHAT), 64)
    with pytest.warns(UserWarning, match=r"1 empty response\(s\), the first is row 1"):
        encoder.encode(["above", "above"], [[{"role": "assistant", "content": " "}], "again"])


@pytest.mark.parametrize("length", [0, -1, 7.5, "64", True])
def test_lengths_that_are_none_are_refused(length):
    with pytest.raises(InputError, match=r"max_length must be (at least 8|a whole number), not"):
        TextEncoder(tiny_tokenizer("llama"), length)


def test_a_default_length_that_no_row_fits_into_is_refused_by_its_origin():
    tokenizer = tiny_tokenizer("llama")
    with pytest.raises(InputError, match=r"the model's max_position_embeddings is 4, .*: give max_length"):
        default_max_length(tokenizer, 4)
    tokenizer.model_max_length = 0
    with pytest.raises(InputError, match=r"the tokenizer's model_max_length is 0, .*: give max_length"):
        default_max_length(tokenizer, 64)


CONVERSATION = [{"role": "assistant", "content": "again"}]


@pytest.mark.parametrize(
    ("trained", "template", "response", "message"),
    [
        (None, None, "again", None),
        ("blank line", None, "again", None),
        ("template", None, "again", "trained on rows joined by 'template', .* here .* by 'blank line'"),
        ("pair", None, "again", "trained on rows joined by 'pair', .* here .* by 'blank line'"),
        ("blank line", CHAT, "again", None),
        ("trl", None, "again", None),
        ("trl", CHAT, "again", None),
        ("trl", CHAT, CONVERSATION, None),
        ("trl", None, CONVERSATION, "trained on rows joined by 'template', .* here .* by 'blank line'"),
        ("something else", None, "again", None),
        (None, CHAT, CONVERSATION, None),
        (None, None, CONVERSATION, "messages are written as 'role: content' paragraphs"),
        ("blank line", None, CONVERSATION, "a model that was trained on plain text may score them otherwise"),
    ],
)
def test_rows_that_are_joined_otherwise_than_for_training_are_told(trained, template, response, message, recwarn):
    tokenizer = tiny_tokenizer("llama", template)
    if trained is not None:
        tokenizer.init_kwargs["trained_joining"] = trained
    TextEncoder(tokenizer, 64).encode(["above"], [response])
    told = [str(warning.message) for warning in recwarn]
    assert len(told) == (message is not None)
    assert message is None or re.search(message, told[0])


@pytest.mark.parametrize(("joining", "note"), [("blank line", {}), (None, {"trained_on_messages": True})])
def test_messages_that_are_joined_as_told_or_as_for_training_have_no_warning(joining, note, recwarn):
    tokenizer = tiny_tokenizer("llama")
    tokenizer.init_kwargs |= note
    TextEncoder(tokenizer, 64, joining).encode(["above"], [CONVERSATION])
    assert not list(recwarn)


def test_a_prompt_that_the_template_has_rendered_already_is_told():
    tokenizer = tiny_tokenizer("llama", CHAT)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "above"}], tokenize=False)
    with pytest.warns(UserWarning, match="row 2: the prompt holds the special token </s>"):
        TextEncoder(tokenizer, 64).encode(["above", rendered], ["again", "again"])


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("words", [5, 40])
def test_token_ids_are_the_rows_of_the_text_that_they_are_of(architecture, words):
    tokenizer = tiny_tokenizer(architecture)
    encoder = TextEncoder(tokenizer, 16)
    text = f"<s> {' '.join(['above', 'all', 'act', 'again', 'also'] * (words // 5))} </s>"
    rendered = encoder.encode_rendered([text], add_special_tokens=False, where=["text 1"])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert encoder.encode_ids([ids], ["text 1"]) == rendered
    assert rendered[0].truncated == (words == 40)


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([], "text 1 has no tokens"),
        ([5, -1], "text 1: a token's id must be from 0 to .*, not -1"),
        ([5, 10**6], "text 1: a token's id must be from 0 to .*, not 1000000"),
        ([True], "not True"),
        (["able"], "not 'able'"),
    ],
)
def test_what_is_no_token_is_refused_by_its_row(ids, told):
    with pytest.raises(InputError, match=told):
        TextEncoder(tiny_tokenizer("llama"), 16).encode_ids([ids], ["text 1"])
