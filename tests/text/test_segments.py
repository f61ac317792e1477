"""Responses in segments as token ids, and where each segment is read."""

import re

import pytest
from tiny import tiny_steps, tiny_tokenizer, words
from tokenizers import normalizers

from bayesrm_fast import InputError, StepwiseResponse
from bayesrm_fast.text.encoder import TextEncoder
from bayesrm_fast.text.segments import SegmentEncoder, checked_spans

TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"

STEPS = StepwiseResponse("able about", ["act add", "age", "air all almost"], [True, False, True], "row 7")

TRL = {
    "llama": (
        [1, 6, 7, 11, 13, 41, 17, 41, 19, 20, 21, 41],
        [-100, -100, -100, -100, -100, 1, -100, 0, -100, -100, -100, 1],
    ),
    "bert": (
        [6, 7, 11, 13, 41, 17, 41, 19, 20, 21, 41],
        [-100, -100, -100, -100, 1, -100, 0, -100, -100, -100, 1],
    ),
}
"""What `PRMTrainer.tokenize_row` of trl 0.27 gives for `STEPS`; later releases, as the installed one, have no such
trainer."""


def segments(architecture="llama", separator="\n", max_length=64, chat_template=None, **joining):
    tokenizer = tiny_tokenizer(architecture, chat_template, knows_line_breaks=True)
    return SegmentEncoder(TextEncoder(tokenizer, max_length, **joining), separator)


def tokens_of(encoder, row):
    return encoder.encoder.tokenizer.convert_ids_to_tokens(row.row.input_ids)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_steps_are_laid_out_as_trl_trains_on_them_and_read_where_it_has_the_labels(architecture):
    ids, labels = TRL[architecture]
    (row,) = segments(architecture).encode_steps([STEPS])
    assert row.row.input_ids == ids
    assert dict(zip(row.ends, map(int, row.labels), strict=True)) == {
        i: label for i, label in enumerate(labels) if label != -100
    }
    assert row.row.token_type_ids == (None if architecture == "llama" else [0] * len(ids))
    assert not row.row.truncated


def test_without_a_separator_a_step_is_read_at_its_last_token():
    encoder = segments(separator="")
    (row,) = encoder.encode_steps([STEPS])
    assert [tokens_of(encoder, row)[end] for end in row.ends] == ["add", "age", "almost"]
    blank = StepwiseResponse("able", ["act", "\u200b"], None, "row 3")
    encoder.encoder.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(InputError, match=r"row 3: completions\[1\] has no tokens"):
        encoder.encode_steps([blank])


@pytest.mark.parametrize(
    "joining",
    [
        {"joining": "template", "chat_template": TEMPLATE},
        {"joining": "concatenate"},
        {"joining": "blank line", "appends_eos": True},
        {"joining": lambda prompt, response: f"{prompt} art {response} art"},
    ],
    ids=["template", "concatenate", "blank line", "function"],
)
def test_a_joining_of_ones_own_keeps_the_separators(joining):
    encoder = segments(**joining)
    (row,) = encoder.encode_steps([STEPS])
    tokens = tokens_of(encoder, row)
    assert [tokens[end] for end in row.ends] == ["\n"] * 3
    assert [tokens[end - 1] for end in row.ends] == ["add", "age", "almost"]
    assert row.labels == [True, False, True]


@pytest.mark.parametrize("joining", [None, "concatenate", "template"])
def test_a_separator_may_be_a_special_token_also_where_it_ends_the_row(joining):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    encoder = segments(separator="</s>", joining=joining, chat_template=template)
    (row,) = encoder.encode_steps([STEPS])
    assert row.ends[-1] == len(row.row.input_ids) - 1
    assert [tokens_of(encoder, row)[end] for end in row.ends] == ["</s>"] * 3


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("ends", [[8, 19], [(0, 7), (8, 19)], [(4, 7), (15, 19)]])
def test_spans_are_read_at_their_last_token(architecture, ends):
    encoder = segments(architecture)
    row = encoder.encode_spans("able above", "act add age air all", ends)
    assert [tokens_of(encoder, row)[end] for end in row.ends] == ["add", "all"]
    whole = encoder.encoder.encode(["able above"], ["act add age air all"])[0]
    assert row.row == whole


def test_what_stands_twice_is_found_in_the_response():
    """This chat template marks no beginning of the response."""
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    encoder = segments(chat_template=template)
    row = encoder.encode_spans("act add", "act add", [3, 7])
    assert row.ends == [2, 3]


def test_a_row_that_is_too_long_loses_the_beginning_of_its_prompt():
    long = StepwiseResponse(words(20, 1), STEPS.completions, STEPS.labels, "row 1")
    (whole,) = segments().encode_steps([long])
    (cut,) = segments(max_length=14).encode_steps([long])
    assert cut.row.truncated
    assert len(cut.row.input_ids) == 14
    assert cut.row.input_ids == [1, *whole.row.input_ids[-13:]]
    assert [cut.row.input_ids[end] for end in cut.ends] == [41] * 3
    encoder = segments("bert", max_length=12)
    row = encoder.encode_spans(words(20, 1), "act add age air all", [7, 19])
    assert row.row.truncated
    assert [tokens_of(encoder, row)[end] for end in row.ends] == ["add", "all"]
    assert tokens_of(encoder, row) == [
        "<s>",
        *words(20, 1).split()[:4],
        "</s>",
        "act",
        "add",
        "age",
        "air",
        "all",
        "</s>",
    ]


@pytest.mark.parametrize("given", ["steps", "spans"])
def test_a_response_is_never_cut(given):
    encoder = segments(max_length=8)
    long = words(9, 1)
    encode = {
        "steps": lambda: encoder.encode_steps([STEPS]),
        "spans": lambda: encoder.encode_spans("able", long, [len(long)], "row 7"),
    }
    with pytest.raises(InputError, match=r"row 7: the response takes 10 tokens .* max_length is 8"):
        encode[given]()


@pytest.mark.parametrize(
    ("separator", "message"),
    [
        ("act add", "row 7: the tokenizer splits the step separator 'act add' into 'act', 'add'"),
        (" ", "row 7: the tokenizer makes no token of the step separator ' '.*step_separator=''"),
        ("§", "row 7: the tokenizer does not know the step separator '§'"),
    ],
)
@pytest.mark.parametrize("joining", [None, "concatenate"])
def test_a_separator_that_is_not_one_token_is_refused(separator, message, joining):
    with pytest.raises(InputError, match=message):
        segments(separator=separator, joining=joining).encode_steps([STEPS])


def test_a_separator_that_merges_with_the_text_around_it_is_refused():
    encoder = segments(joining="concatenate")
    encoder.encoder.tokenizer.add_tokens(["age\n"])
    with pytest.raises(InputError, match=r"row 7: the tokenizer merges the step separator '\\n' .* completions\[1\]"):
        encoder.encode_steps([STEPS])
    encoder = segments(joining="concatenate")
    encoder.encoder.tokenizer.add_tokens(["\nage"])
    with pytest.raises(InputError, match="row 7: segment 1: one token holds the characters 7 to 11"):
        encoder.encode_steps([STEPS])
    (row,) = segments().encode_steps([STEPS])  # trl tokenizes the pieces by themselves
    assert len(row.ends) == 3


def test_a_conversation_needs_a_template():
    steps = StepwiseResponse([{"role": "user", "content": "able"}], ["act"], None, "row 2")
    with pytest.raises(InputError, match=r"row 2: the prompt is a conversation.*joining='template'"):
        segments(chat_template=TEMPLATE).encode_steps([steps])
    (row,) = segments(chat_template=TEMPLATE, joining="template").encode_steps([steps])
    assert len(row.ends) == 1


def test_a_template_that_changes_the_response_is_refused():
    template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    encoder = segments(chat_template=template, joining="template")
    with pytest.raises(InputError, match="row 7: joining prompt and response changes the response"):
        encoder.encode_steps([STEPS])


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([], "ends must be"),
        (None, "ends must be"),
        ([3, 3], "segment 2, 3 to 3, is empty"),
        ([7, 3], "segment 2, 7 to 3, is empty"),
        ([3, 20], "segment 2, 3 to 20, leaves the response's 19 characters"),
        ([-1], "segment 1, 0 to -1, is empty"),
        ([(-2, 3)], "segment 1, -2 to 3, leaves"),
        ([(0, 7), (4, 19)], "segment 2, 4 to 19, overlaps the one before it, which ends at 7"),
        ([(8, 11), (0, 3)], "segment 2, 0 to 3, overlaps"),
        ([2.5], "segment 1 must be a whole number or two"),
        ([(0, 1, 2)], "segment 1 must be a whole number or two"),
        ([True], "segment 1 must be a whole number"),
        (["a"], "segment 1 must be a whole number"),
    ],
)
def test_spans_that_cannot_be_are_refused(ends, message):
    with pytest.raises(InputError, match=f"row 4.*{message}"):
        segments().encode_spans("able", "act add age air all", ends, "row 4")


def test_a_span_with_an_edge_within_a_token_and_one_without_tokens_are_refused():
    with pytest.raises(InputError, match=r"segment 2: one token holds the characters 4 to 7, .* edge at 6"):
        segments().encode_spans("able", "act add age", [3, 6, 11])
    with pytest.raises(InputError, match="segment 2 has no token of its own"):
        segments().encode_spans("able", "act add age", [3, 4, 11])
    with pytest.raises(InputError, match="must be a string where ends are given, not list"):
        segments().encode_spans("able", ["act"], [3])


def test_spans_of_arrays_are_spans():
    import numpy as np

    assert checked_spans(np.array([3, 7]), 9, "here") == [(0, 3), (3, 7)]
    assert checked_spans(np.array([[0, 3], [5, 9]]), 9, "here") == [(0, 3), (5, 9)]


def test_causal_rows_end_where_they_are_read():
    (row,) = segments().encode_steps([STEPS])
    reads, whole = row.reads(is_causal=True), row.reads(is_causal=False)
    assert [one.input_ids for one in reads] == [row.row.input_ids[: end + 1] for end in row.ends]
    assert [one.input_ids for one in whole] == [row.row.input_ids] * 3
    assert [one.read_at for one in reads] == [one.read_at for one in whole] == [(end,) for end in row.ends]
    assert row.whole(is_causal=True).input_ids == row.row.input_ids[: row.ends[-1] + 1]
    assert row.whole(is_causal=False).read_at == tuple(row.ends)
    assert [one.where for one in reads] == [f"row 7: segment {k}" for k in (1, 2, 3)]
    steps = row.steps(is_causal=True)
    assert [step.label_sign for step in steps] == [1.0, -1.0, 1.0]
    assert {step.group for step in steps} == {"row 7"}


def test_every_response_has_its_own_row():
    rows = tiny_steps(5)
    found = segments().encode_steps([StepwiseResponse(**row) for row in rows])
    assert [len(one.ends) for one in found] == [len(row["completions"]) for row in rows]
    assert [one.labels for one in found] == [row["labels"] for row in rows]


@pytest.mark.parametrize(
    ("separator", "joining", "message"),
    [
        (None, None, None),
        ("", None, None),
        ("\n", None, r"trained on steps in trl's form with '' after each, and here they have '\\n', so"),
        (None, "concatenate", "here they have '' and joined by 'concatenate', so scores may differ"),
    ],
)
def test_steps_that_are_laid_out_otherwise_than_for_training_are_told(separator, joining, message, recwarn):
    tokenizer = tiny_tokenizer("llama", knows_line_breaks=True)
    tokenizer.init_kwargs["trained_step_separator"] = ""
    SegmentEncoder(TextEncoder(tokenizer, 64, joining), separator)
    told = [str(warning.message) for warning in recwarn]
    assert len(told) == (message is not None)
    assert message is None or re.search(message, told[0])


def test_spans_that_are_joined_otherwise_than_for_training_are_told():
    encoder = segments()
    with pytest.warns(UserWarning, match="messages are written as 'role: content' paragraphs"):
        encoder.encode_spans([{"role": "user", "content": "able"}], "act add", [3, 7])
    encoder.encoder.tokenizer.init_kwargs["trained_joining"] = "pair"
    with pytest.warns(UserWarning, match="trained on rows joined by 'pair'"):
        encoder.encode_spans("able", "act add", [3, 7])


def test_a_separator_is_a_string():
    with pytest.raises(InputError, match="step_separator must be a string, not 3"):
        segments(separator=3)


def test_a_token_that_holds_the_responses_end_and_what_follows_it_is_refused():
    """As ".\n\n" is in many vocabularies: read at the token before, the segment would lose its last characters."""
    encoder = segments(joining=lambda prompt, response: prompt + " " + response + "s", appends_eos=False)
    with pytest.raises(InputError, match=r"one token holds the characters 4 to 8, and the segment has an edge at 7"):
        encoder.encode_spans("able", "act age", [3, 7])
