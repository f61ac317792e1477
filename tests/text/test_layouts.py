"""Layouts of preference data that people have: each conversation is rendered once and whole, or the row is refused."""

import pytest
import torch
from tiny import tiny_adapter, tiny_tokenizer, words
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tolerances import RELATIVE
from transformers import PreTrainedTokenizerFast

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.text.encoder import TextEncoder
from bayesrm_fast.text.layouts import is_dialogue, separated, turns
from bayesrm_fast.text.records import all_pairs, candidate_sets, single_responses

CHAT = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}"
ASKED, GOOD, BAD = "above all?", "act again", "able"
BOTH = ["chosen", "rejected"]


def said(*turns):
    """Messages by `u`ser, `h`uman, `a`ssistant and `s`ystem, as "u above all"."""
    roles = {"u": "user", "a": "assistant", "s": "system", "h": "human"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


def letters(chat_template=None):
    """A decoder's tokenizer of one token a character, which sees every space."""
    characters = ["<pad>", "<s>", "</s>", "<unk>", "\n", *map(chr, range(32, 127))]
    inner = Tokenizer(models.WordLevel({one: i for i, one in enumerate(characters)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=chat_template
    )


USER, WITH_SYSTEM = said(f"u {ASKED}"), said("s age", f"u {ASKED}")
LONG = said(f"u {ASKED}", "a alone", "u and?")

CONVERSATIONS = [
    ("UltraFeedback", USER, {"prompt": ASKED, "whole": True, "messages": USER, "score_chosen": 8.0}),
    ("trl, implicit", USER, {"whole": True}),
    ("trl, explicit", USER, {"prompt": USER}),
    ("trl, explicit and repeated", USER, {"prompt": USER, "whole": True}),
    ("another name of the user", said(f"h {ASKED}"), {"prompt": ASKED, "whole": True}),
    ("a prompt in other spacing", USER, {"prompt": " above  all?\n", "whole": True}),
    ("a system's message before the prompt", WITH_SYSTEM, {"prompt": ASKED, "whole": True}),
    ("a system's message, implicit", WITH_SYSTEM, {"whole": True}),
    ("a system's message that the prompt lacks", WITH_SYSTEM, {"prompt": USER, "whole": True}),
    ("a system's message as the prompt", WITH_SYSTEM, {"prompt": WITH_SYSTEM[:1], "from": 1}),
    ("several turns, implicit", LONG, {"whole": True}),
    ("several turns after the prompt", LONG, {"prompt": ASKED, "whole": True}),
    ("several turns before the prompt", LONG, {"prompt": "and?", "whole": True}),
    ("several turns in the prompt", LONG, {"prompt": LONG}),
    ("a prompt that ends in an answer", LONG, {"prompt": LONG[:2], "from": 2}),
]


def row_of(opening, layout):
    start = 0 if layout.get("whole") else layout.get("from", len(opening))
    sides = {"chosen": [*opening, *said(f"a {GOOD}")], "rejected": [*opening, *said(f"a {BAD}")]}
    others = {name: value for name, value in layout.items() if name not in ("whole", "from")}
    return others | {side: messages[start:] for side, messages in sides.items()}, sides


@pytest.mark.parametrize(("opening", "layout"), [case[1:] for case in CONVERSATIONS], ids=[c[0] for c in CONVERSATIONS])
def test_a_conversation_is_rendered_whole_and_once(opening, layout):
    row, sides = row_of(opening, layout)
    tokenizer = letters(CHAT)
    encoder = TextEncoder(tokenizer, 512)
    (pair,) = encoder.encode_pairs(all_pairs([row]))
    expected = [
        tokenizer(tokenizer.apply_chat_template(sides[side], tokenize=False), add_special_tokens=False).input_ids
        for side in BOTH
    ]
    assert [one.input_ids for one in pair.rows] == expected
    candidates = {name: value for name, value in row.items() if name not in BOTH}
    for responses in ([row["chosen"], row["rejected"]], [row["chosen"]]):
        (one,) = candidate_sets([candidates | {"responses": responses}])
        found = encoder.encode([one.prompt] * len(responses), one.responses)
        assert [each.input_ids for each in found] == expected[: len(responses)]
    (one,) = single_responses([(1, candidates | {"response": row["chosen"]})])
    assert encoder.encode([one.prompt], one.responses)[0].input_ids == expected[0]


def whole_reward(model, tokenizer, conversation):
    """By transformers alone, unbatched."""
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits.item()


@pytest.mark.parametrize(("prompt", "is_whole"), [(ASKED, True), (USER, True), (None, True), (USER, False)])
def test_margins_and_rewards_are_those_of_the_whole_conversations(prompt, is_whole):
    model, tokenizer = tiny_adapter("llama"), tiny_tokenizer("llama", CHAT)
    rm = BayesianRewardModel(model, tokenizer)
    openings = [said(f"u {ASKED if prompt else words(3, i)}") for i in range(4)]
    sides = [
        [[*opening, *said(f"a {words(2 + i, 50 + side)}")] for i, opening in enumerate(openings)] for side in (0, 1)
    ]
    rows = [
        {side: texts[i][0 if is_whole else 1 :] for side, texts in zip(BOTH, sides, strict=True)}
        | ({} if prompt is None else {"prompt": prompt})
        for i in range(4)
    ]
    good, bad = (torch.tensor([whole_reward(model, tokenizer, one) for one in texts]).double() for texts in sides)
    rm.fit(rows, rank=4)
    tolerance = dict(rtol=0, atol=2 * RELATIVE[torch.float32] * max(good.abs().max(), bad.abs().max()).item())
    torch.testing.assert_close(rm.score_pairs(rows).mean.double(), good - bad, **tolerance)
    if prompt is not None:
        responses = [row["chosen"] for row in rows]
        found = [rm.rewards([prompt] * 4, responses), rm.score([prompt] * 4, responses).mean]
        for rewards in [*found, rm.covariance(prompt, responses).mean]:
            torch.testing.assert_close(rewards.double(), good, **tolerance)


HH = "\n\nHuman: above all?\n\nAssistant: alone\n\nHuman: and?\n\nAssistant:"
HH_ROWS = [
    {"chosen": HH + " act again", "rejected": HH + " able"},
    {"prompt": HH, "chosen": HH + " act again", "rejected": HH + " able"},
    {"prompt": HH, "chosen": " act again", "rejected": " able"},
    {"prompt": HH + " ", "chosen": "act again", "rejected": "able"},
]


@pytest.mark.parametrize("row", HH_ROWS)
def test_a_dialogue_in_one_string_stays_as_it_is_or_becomes_messages(row):
    pairs = all_pairs([row])
    plain, chat = letters(), letters(CHAT)
    (found,) = TextEncoder(plain, 512).encode_pairs(pairs)
    assert [one.input_ids for one in found.rows] == [plain(HH + end).input_ids for end in (" act again", " able")]
    (found,) = TextEncoder(chat, 512).encode_pairs(pairs)
    rendered = [chat.apply_chat_template([*LONG, *said(f"a {end}")], tokenize=False) for end in (GOOD, BAD)]
    assert [one.input_ids for one in found.rows] == [
        chat(text, add_special_tokens=False).input_ids for text in rendered
    ]
    bert = tiny_tokenizer("bert")
    (found,) = TextEncoder(bert, 64).encode_pairs(pairs)
    assert found.chosen.input_ids == bert(HH.removesuffix("\n\nAssistant:"), "Assistant: act again").input_ids


@pytest.mark.parametrize("response", [" act again", HH + " act again"])
def test_one_response_to_a_dialogue_carries_it_on(response):
    plain = letters()
    (one,) = single_responses([(1, {"prompt": HH, "response": response})])
    assert (
        TextEncoder(plain, 512).encode([one.prompt], one.responses)[0].input_ids == plain(HH + " act again").input_ids
    )


def test_the_turns_of_a_dialogue():
    assert turns(HH + " act\n\nagain") == [*LONG, {"role": "assistant", "content": "act\n\nagain"}]
    assert is_dialogue(HH)
    assert not is_dialogue("Humans: a")
    assert not is_dialogue(LONG)


def test_dialogues_that_part_early_share_what_they_share():
    rows = [
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "rejected": "\n\nHuman: a\n\nAssistant: e",
        }
    ]
    (pair,) = all_pairs(rows)
    assert (pair.prompt, pair.rejected) == ("\n\nHuman: a", "Assistant: e")
    assert pair.chosen == "Assistant: b\n\nHuman: c\n\nAssistant: d"


@pytest.mark.parametrize("between", ["\n\n", " ", "\n", ""])
@pytest.mark.parametrize("prompt", [ASKED, "above all?\n", "above  all?"])
def test_a_string_that_both_responses_repeat_is_read_once(prompt, between):
    if not between and prompt == "above  all?":
        prompt = ASKED
    repeated = {side: f"{prompt}{between}{end}" for side, end in zip(BOTH, (GOOD, BAD), strict=True)}
    with pytest.warns(UserWarning, match="row 1: the responses begin with the prompt, which is read once"):
        found = all_pairs([{"prompt": prompt, **repeated}] * 2)
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in found] == [(prompt, GOOD, BAD)] * 2
    with pytest.warns(UserWarning, match="read once"):
        (one,) = candidate_sets([{"prompt": prompt, "responses": list(repeated.values())}])
    assert one.responses == [GOOD, BAD]


@pytest.mark.parametrize(
    ("prompt", "responses"),
    [
        ("Hi", ["Hiking is good", "Hills"]),
        ("Hi", ["Hi! How are you?", "Hi, there"]),
        (ASKED, ["above all? Nothing", "Nothing"]),  # models do so
        ("", ["a", "b"]),
        ("Hello!", ["Hello! How can I help you?", "Hello! What is it?"]),  # so greetings are answered
        ("你好", ["你好 吗", "你好 啊"]),
    ],
)
def test_responses_that_do_not_all_repeat_the_prompt_are_left(prompt, responses, recwarn):
    found = separated(prompt, responses, BOTH, "row 1")
    assert (found.prompt, found.responses, found.warning) == (prompt, responses, None)


def test_rows_that_all_begin_with_their_prompt_are_told():
    rm = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))
    with pytest.warns(UserWarning, match="row 1 and all 2 rows: the response begins with the prompt"):
        rm.rewards(["above all", "act"], ["above all again", "act alone"])


def test_strings_without_a_prompt_are_the_whole_texts_that_they_are():
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    for tokenizer in (letters(), letters(CHAT), tiny_tokenizer("bert"), tiny_tokenizer("llama", CHAT)):
        with pytest.warns(UserWarning, match="row 1: there is no prompt"):
            pairs = all_pairs([row])
        assert pairs[0].prompt is None
        (found,) = TextEncoder(tokenizer, 64).encode_pairs(pairs)
        assert [one.input_ids for one in found.rows] == [tokenizer(row[side]).input_ids for side in BOTH]


def test_a_text_that_was_rendered_before_keeps_its_one_beginning():
    tokenizer = tiny_tokenizer("llama", CHAT)
    texts = {side: f"<s> above all </s> {end}" for side, end in zip(BOTH, (GOOD, BAD), strict=True)}
    with pytest.warns(UserWarning, match="no prompt"):
        (pair,) = TextEncoder(tokenizer, 64).encode_pairs(all_pairs([texts]))
    assert pair.chosen.input_ids == tokenizer(texts["chosen"], add_special_tokens=False).input_ids
    assert pair.chosen.input_ids.count(tokenizer.bos_token_id) == 1


WHOLE = {"chosen": [*USER, *said("a b")], "rejected": [*USER, *said("a c")]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "other", **WHOLE},
            "row 1: chosen begins with a message of the role 'user' that does not repeat the prompt",
        ),
        ({"prompt": said("u other"), **WHOLE}, "row 1: chosen begins with a message of the role 'user'"),
        (
            {**WHOLE, "prompt": ASKED, "rejected": said("u other", "a c")},
            "row 1: rejected begins with a message of the role 'user'",
        ),
        (
            {**WHOLE, "prompt": ASKED, "rejected": said("a c")},
            "row 1: chosen and rejected do not repeat the prompt alike",
        ),
        (
            {**WHOLE, "prompt": ASKED, "rejected": [*WITH_SYSTEM, *said("a c")]},
            "row 1: chosen and rejected do not repeat the prompt alike",
        ),
        (
            {"prompt": ASKED, "chosen": said("s age", "a b"), "rejected": said("a c")},
            "chosen begins with a message of the role 'system'",
        ),
        ({**WHOLE, "prompt": ASKED, "chosen": USER}, "row 1: chosen begins with a message of the role 'user'"),
        ({**WHOLE, "rejected": said("u other", "a c")}, "share no first message that could be one"),
        ({"chosen": said("a b"), "rejected": said("a c")}, "share no first message"),
        ({"chosen": said("s age", "u x", "a b"), "rejected": said("s age", "u y", "a c")}, "share no first message"),
        (
            {"prompt": said("s age"), "chosen": said("u x", "a b"), "rejected": said("u y", "a c")},
            "share no first message",
        ),
        ({**WHOLE, "rejected": "c"}, "chosen and rejected are neither all strings nor all conversations"),
        ({"chosen": "Paris.", "rejected": "London."}, "chosen and rejected share no beginning that could be one"),
        ({"question": "Where?", "chosen": "In Paris.", "rejected": "In London."}, "no column 'prompt', but 'question'"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
            "share no beginning up to",
        ),
        ({"chosen": "Human: a", "rejected": "Human: b"}, "share no beginning up to"),
        ({"prompt": None, "chosen": "a b", "rejected": "a c"}, "row 1: prompt must be a string"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "system": "age"}, "column 'system', which is not served"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "images": ["x.png"]}, "column 'images', which is not served"),
    ],
)
def test_rows_whose_prompt_cannot_be_told_are_refused(row, message):
    with pytest.raises(InputError, match=message):
        all_pairs([row])


def test_candidates_without_a_prompt():
    one, other = ([*USER, *said(f"a {end}")] for end in (GOOD, BAD))
    (found,) = candidate_sets([{"responses": [one, other]}])
    assert (found.prompt, found.responses) == (USER, [said(f"a {GOOD}"), said(f"a {BAD}")])
    (found,) = candidate_sets([{"responses": [HH + " a", HH + " b", HH + " c"]}])
    assert (found.prompt + "\n\n" + found.responses[2]) == HH + " c"
    for responses in (["a b", "a c"], ["a"], ["a", "b", "c", "d"]):
        with pytest.raises(InputError, match=r"row 1 has no (column )?'?prompt"):
            candidate_sets([{"responses": responses}])


def test_pairs_without_a_prompt_are_no_candidates_of_one_prompt():
    rm = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama")).fit(
        [{"prompt": "a", "chosen": "act", "rejected": "all"}], rank=1
    )
    rows = [{"chosen": f"above {one}", "rejected": f"above {other}"} for one, other in (("act", "all"), ("age", "air"))]
    with (
        pytest.warns(UserWarning, match="no prompt"),
        pytest.raises(InputError, match="nothing to tune by"),
    ):
        rm.tune_penalty(rows)
