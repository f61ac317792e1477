"""log π(y | x): against a loop over tokens, against probability's own law, and where a response's tokens begin."""

import itertools
import math

import pytest
import torch
from tiny import WORDS, tiny_adapter, tiny_policy, tiny_tokenizer, words
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from bayesrm_fast.errors import InputError
from bayesrm_fast.proximity.log_probability import PolicyLogProbabilities
from bayesrm_fast.text.records import Candidates, candidate_sets

TEMPLATE = (
    "<s>{% for message in messages %} {{ message['role'] }} {{ message['content'] }} </s>{% endfor %}"
    "{% if tools %} able{% endif %}{% if add_generation_prompt %} answer {% endif %}"
)
SETS = candidate_sets(
    [
        {"prompt": words(3, 1) + " ", "responses": [words(count, 10 + count) for count in (1, 7, 2)]},
        {"prompt": words(9, 2) + " ", "responses": [words(count, 20 + count) for count in (5, 3)]},
    ]
)


MODEL = tiny_policy()


def policy(tokenizer=None, model=MODEL, **options):
    return PolicyLogProbabilities(model, tokenizer or tiny_tokenizer("llama"), **options)


def by_loop(before, after, model=MODEL):
    """Token by token, each predicted from those before it alone."""
    total = 0.0
    for i, token in enumerate(after):
        logits = model(torch.tensor([before + after[:i]])).logits[0, -1].detach()
        total += float(logits.log_softmax(-1)[token])
    return total


def of_one(prompt, response, tokenizer=None, **options):
    ((found,),) = policy(tokenizer).log_probabilities([Candidates(prompt, [response], where="row 1", **options)])
    return float(found)


def ids(text, begin=(1,)):
    return [*begin, *tiny_tokenizer("llama")(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("max_batch_tokens", [1, 30, 4096])
def test_it_is_the_sum_over_the_tokens_of_the_response(padding_side, max_batch_tokens):
    tokenizer = tiny_tokenizer("llama")
    tokenizer.padding_side = padding_side
    found = policy(tokenizer, max_batch_tokens=max_batch_tokens).log_probabilities(SETS)
    for one, own in zip(SETS, found, strict=True):
        expected = [by_loop(ids(one.prompt), ids(response, ())) for response in one.responses]
        torch.testing.assert_close(own, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_it_is_so_for_models_with_logits_and_positions_of_other_kinds(architecture):
    model = tiny_policy(
        architecture, torch.float32, **({"final_logit_softcapping": 2.0} if architecture == "gemma2" else {})
    )
    for one, found in zip(SETS, policy(model=model).log_probabilities(SETS), strict=True):
        expected = [by_loop(ids(one.prompt), ids(response, ()), model) for response in one.responses]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_a_model_that_gives_all_logits_only_is_served(monkeypatch):
    expected = policy().log_probabilities(SETS)
    forward = MODEL.forward
    monkeypatch.setattr(
        MODEL,
        "forward",
        lambda input_ids, attention_mask, use_cache: forward(input_ids, attention_mask, use_cache=use_cache),
    )
    torch.testing.assert_close(policy().log_probabilities(SETS), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("length", [1, 2])
def test_the_probabilities_of_all_responses_of_a_length_sum_to_one(length):
    """Those that are read a position too late or too early do not: a response would predict itself."""
    names = ["<pad>", "<s>", "</s>", "<unk>", *WORDS[:9]]
    model = tiny_policy(vocab_size=len(names))
    responses = [" ".join(tokens) for tokens in itertools.product(names, repeat=length)]
    (found,) = policy(model=model).log_probabilities([Candidates("ability able ", responses, where="row 1")])
    assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    before = ids("ability able")
    rows = torch.tensor([before + ids(response, ()) for response in responses])
    late = model(rows).logits.detach().log_softmax(-1).gather(-1, rows[..., None])[:, len(before) :, 0].sum(1)
    assert abs(float(late.exp().sum()) - 1) > 1e-3


def test_a_response_takes_no_token_from_its_prompt():
    tokenizer = tiny_tokenizer("llama")
    assert tokenizer("arriveart", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]
    assert of_one("able arrive", "art again") == pytest.approx(by_loop(ids("able arrive"), ids("art again", ())))


def test_a_response_begins_as_it_does_after_its_prompt():
    """SentencePiece puts a space before a text that stands alone, and there is none after this prompt."""
    names = ["<pad>", "<s>", "<unk>", "▁able", ":", "about", "▁about"]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>")
    assert tokenizer("about")["input_ids"] == [6]
    assert of_one("able:", "about", tokenizer) == pytest.approx(by_loop([3, 4], [5]))


def test_what_a_tokenizer_puts_after_a_text_does_not_stand_before_the_response():
    tokenizer = tiny_tokenizer("llama")
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tokenizer("able")["input_ids"][-1] == 2
    assert of_one("able ", "about", tokenizer) == of_one("able ", "about")
    assert of_one("able </s> ", "about", tokenizer) == pytest.approx(by_loop(ids("able </s>"), ids("about", ())))


@pytest.mark.parametrize("prompt", ["able about", [{"role": "user", "content": "able about"}]])
def test_a_conversation_is_rendered_by_the_chat_template(prompt):
    tokenizer = tiny_tokenizer("llama", TEMPLATE)
    message = [{"role": "assistant", "content": "arm around"}]
    expected = by_loop(ids("user able about </s> answer"), ids("arm around", ()))
    assert of_one(prompt, message, tokenizer) == pytest.approx(expected)
    if not isinstance(prompt, str):
        assert of_one(prompt, "arm around", tokenizer) == pytest.approx(expected)
    with_tools = of_one(prompt, message, tokenizer, tools=[{"name": "able"}])
    assert with_tools == pytest.approx(by_loop(ids("user able about </s> able answer"), ids("arm around", ())))


def test_plain_texts_are_joined_as_they_are_whether_there_is_a_chat_template_or_not():
    assert of_one("able ", "about", tiny_tokenizer("llama", TEMPLATE)) == of_one("able ", "about")


def test_in_a_dialogue_the_response_is_what_is_said():
    dialogue = "\n\nHuman: able\n\nAssistant:"
    (one,) = candidate_sets([{"prompt": dialogue, "responses": [" about", " arm"]}])
    assert one.responses == ["Assistant: about", "Assistant: arm"]
    (found,) = policy().log_probabilities([one])
    assert float(found[0]) == pytest.approx(by_loop(ids(dialogue), ids("about", ())))


CHAT = [{"role": "user", "content": "able"}]
CALLS = [{"role": "assistant", "content": "", "tool_calls": [{"name": "a"}]}]
TURNS = [{"role": "assistant", "content": "arm"}, {"role": "user", "content": "art"}]


@pytest.mark.parametrize(
    ("prompt", "response", "template", "options", "message"),
    [
        ("able", "", None, {}, r"is empty, and so has no tokens"),
        ("able ", words(70), None, {}, r"has 70 tokens after the prompt's 2, and the policy has positions for 64"),
        (CHAT, "about", None, {}, r"is of a conversation, and the policy's tokenizer has no chat template"),
        ("able", TURNS, TEMPLATE, {}, r"must be a text or one message without tool_calls"),
        ("able", CALLS, TEMPLATE, {}, r"must be a text or one message without tool_calls"),
        (CHAT, "about", "{{ messages[0].content }}", {"tools": [{"name": "a"}]}, r"has tools, which .* leaves out"),
        (CHAT, "about", "{{ raise_exception('no') }}", {}, r"the policy's chat template does not take its prompt: no"),
    ],
)
def test_what_cannot_be_probable_is_refused_by_its_row(prompt, response, template, options, message):
    tokenizer = tiny_tokenizer("llama", template)
    rows = [SETS[0], Candidates(prompt, ["about", response], where="row 2", **options)]
    with pytest.raises(InputError, match=rf"^row 2: responses\[\d\]:? {message}"):
        policy(tokenizer).log_probabilities(rows)


def test_a_response_without_any_token_before_it_is_refused():
    tokenizer = tiny_tokenizer("llama")
    assert of_one("", "able", tokenizer) == pytest.approx(by_loop([1], ids("able", ())))
    tokenizer._tokenizer.post_processor = None
    with pytest.raises(InputError, match=r"row 1: responses\[0\] has no token before it"):
        of_one("", "able", tokenizer)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("which", "first"), [(ids("arrive", ()), 1), (slice(None), 0)])
def test_a_log_probability_that_is_not_finite_is_refused_by_its_row(which, first, value):
    model = tiny_policy()
    with torch.no_grad():
        model.get_input_embeddings().weight[which] = value
    rows = [Candidates("able ", ["about", "arrive about"], where="row 7")]
    with pytest.raises(InputError, match=rf"row 7: responses\[{first}\] has the log-probability nan"):
        policy(model=model).log_probabilities(rows)


def test_models_that_are_no_policies_are_refused():
    with pytest.raises(InputError, match=r"BertLMHeadModel sees the tokens that it is to predict"):
        policy(model=tiny_policy("bert"))
    with pytest.raises(InputError, match=r"in training mode"):
        policy(model=tiny_policy().train())
    with pytest.raises(InputError, match=r"max_batch_tokens must be a whole number of at least 1, not 0"):
        policy(max_batch_tokens=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # the second has its logits' weights in its embeddings
def test_one_from_a_folder_is_the_same(architecture, tmp_path):
    model = tiny_policy(architecture, torch.float32)
    model.save_pretrained(tmp_path)
    tiny_tokenizer("llama").save_pretrained(tmp_path)
    loaded = PolicyLogProbabilities.from_pretrained(tmp_path, device="cpu")
    assert loaded.model.dtype == torch.float32
    torch.testing.assert_close(
        loaded.log_probabilities(SETS), policy(model=model).log_probabilities(SETS), rtol=1e-5, atol=1e-5
    )
    half = PolicyLogProbabilities.from_pretrained(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert all(bool((own <= 0).all()) for own in half.log_probabilities(SETS))


def test_folders_without_a_policy_are_refused(base_folder, tmp_path):
    with pytest.raises(InputError, match=r"is no causal language model: it lacks lm_head.weight, which would be ran"):
        PolicyLogProbabilities.from_pretrained(base_folder)
    with pytest.raises(InputError, match=rf"the policy {tmp_path} cannot be loaded: "):
        PolicyLogProbabilities.from_pretrained(tmp_path)


@pytest.fixture
def policy_folder(tmp_path):
    tiny_policy("llama", torch.float32).save_pretrained(tmp_path / "policy")
    tiny_tokenizer("llama").save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def saved_adapter(folder, base, **lora):
    model = tiny_adapter("llama", base=base, **lora)
    model.save_pretrained(folder)
    tiny_tokenizer("llama").save_pretrained(folder)
    return model


def test_an_adapter_is_put_on_its_base_model(policy_folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(policy_folder)
    model = saved_adapter(tmp_path / "adapter", base, task_type="CAUSAL_LM")
    loaded = PolicyLogProbabilities.from_pretrained(tmp_path / "adapter", device="cpu").log_probabilities(SETS)
    expected = policy(model=model.merge_and_unload()).log_probabilities(SETS)
    torch.testing.assert_close(loaded, expected, rtol=1e-4, atol=1e-4)
    bare = PolicyLogProbabilities.from_pretrained(policy_folder, device="cpu").log_probabilities(SETS)
    assert (loaded[0] - bare[0]).abs().max() > 0.1


def test_an_adapter_of_a_reward_model_is_no_policy(adapter_folder):
    with pytest.raises(InputError, match="is an adapter for SEQ_CLS, and no policy"):
        PolicyLogProbabilities.from_pretrained(adapter_folder)


def test_an_adapter_whose_base_model_has_no_weights_for_the_logits_is_refused(base_folder, tmp_path):
    saved_adapter(tmp_path / "adapter", AutoModelForCausalLM.from_pretrained(base_folder), task_type="CAUSAL_LM")
    with pytest.raises(InputError, match=r"adapter is no causal language model: it lacks lm_head.weight"):
        PolicyLogProbabilities.from_pretrained(tmp_path / "adapter")


def test_rows_that_have_them_keep_their_own():
    rows = [{"prompt": "able ", "responses": ["about", "arm"]}, {"prompt": "a ", "responses": ["art"]}]
    assert policy().log_probabilities([]) == []
    given, absent = policy().add([rows[0] | {"log_probabilities": [-1.0, -2.0]}, rows[1]])
    assert given.log_probabilities == [-1.0, -2.0]
    assert absent.log_probabilities == [pytest.approx(by_loop(ids("a"), ids("art", ())))]
    assert absent == candidate_sets([rows[1] | {"log_probabilities": absent.log_probabilities}])[0]


def test_a_padding_token_that_the_model_does_not_embed_is_not_used():
    tokenizer = tiny_tokenizer("llama")
    expected = policy(tokenizer).log_probabilities(SETS)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == MODEL.get_input_embeddings().num_embeddings
    torch.testing.assert_close(policy(tokenizer).log_probabilities(SETS), expected, rtol=0, atol=0)


def test_a_callers_autocast_and_padding_of_its_tokenizer_change_nothing():
    tokenizer = tiny_tokenizer("llama")
    tokenizer(["able about", "able"], padding=True, truncation=True, max_length=4)
    model = tiny_policy(dtype=torch.float32)
    expected = policy(model=model).log_probabilities(SETS)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        found = policy(tokenizer, model).log_probabilities(SETS)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
