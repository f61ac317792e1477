"""A reward model with its tokenizer and taps, before any posterior."""

import pytest
import torch
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model.fingerprint import model_fingerprint
from bayesrm_fast.model.readout import PooledReadout
from bayesrm_fast.model.reward_model import RewardModel
from bayesrm_fast.model.token_budget import TokenBudget
from bayesrm_fast.text.records import candidate_sets


def reward_model(model=None, tokenizer=None, **options):
    model = tiny_adapter("llama") if model is None else model
    return RewardModel(model, tokenizer or tiny_tokenizer("llama"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_weights": [1.0, 2.0]}, "must be 1 finite numbers"),
        ({"max_length": 7}, "max_length must be at least 8"),
        ({"max_batch_tokens": 0}, "max_batch_tokens must be positive, not 0"),
        ({"virtual_rank": 0}, "virtual_rank must be a whole number"),
    ],
)
def test_options_that_cannot_be_served_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        reward_model(**options)


def test_several_outputs_need_their_weights():
    model = tiny_adapter("llama", num_labels=3)
    with pytest.raises(InputError, match="3 outputs"):
        reward_model(model)
    with pytest.raises(InputError, match="3 finite numbers"):
        reward_model(model, output_weights=[1.0, 2.0])
    assert reward_model(model, output_weights=[1.0, 2.0, 0.0]).output_weights.tolist() == [1.0, 2.0, 0.0]


def test_without_an_adapter_virtual_ones_are_asked_for():
    with pytest.raises(InputError, match="no LoRA adapter"):
        reward_model(tiny_base("llama"))
    virtual = reward_model(tiny_base("llama"), virtual_rank=2)
    assert (virtual.adapter, virtual.lora, virtual.virtual) == (None, [], None)
    beside = reward_model(virtual_rank=2)
    assert beside.adapter == "default"
    assert beside.lora


def test_rows_are_as_long_as_model_and_tokenizer_accept():
    assert reward_model().encoder.max_length == 64
    assert (
        reward_model(tiny_adapter("llama", base=tiny_base("llama", max_position_embeddings=32))).encoder.max_length
        == 32
    )
    assert reward_model(max_length=16).encoder.max_length == 16


def test_the_padding_token_is_the_models_and_never_the_tokenizers():
    tokenizer = tiny_tokenizer("llama")
    assert reward_model(tokenizer=tokenizer).collator.pad_token_id == 0
    other = tiny_adapter("llama", base=tiny_base("llama", pad_token_id=3))
    assert reward_model(other, tokenizer).collator.pad_token_id == 3
    none = tiny_adapter("llama", base=tiny_base("llama", pad_token_id=None))
    assert reward_model(none, tokenizer).collator.pad_token_id is None


def test_on_a_cpu_the_token_budget_is_given_or_fixed():
    assert reward_model().passes_over([]).budget == TokenBudget(4096)
    assert reward_model(max_batch_tokens=10).passes_over([]).budget == TokenBudget(10)


def test_texts_keep_what_an_error_will_call_them():
    rm = reward_model()
    sets = candidate_sets([{"prompt": "a", "responses": ["b", "c"]}, {"prompt": "d", "responses": ["e"]}], "file")
    named = [row.where for row in rm.tokenize_candidates(sets)]
    assert named == ["file, row 1: responses[0]", "file, row 1: responses[1]", "file, row 2: responses[0]"]
    assert [row.where for row in rm.tokenize(["a"] * 2, ["b"] * 2, ["one", "two"])] == ["one", "two"]
    assert [pair.where for pair in rm.tokenize_pairs(tiny_pairs(2), "held out")] == [
        "held out, row 1",
        "held out, row 2",
    ]
    with pytest.raises(InputError, match="held out: there are no rows"):
        rm.tokenize_pairs([], "held out")


def test_the_base_models_name_is_where_it_was_loaded_from():
    adapted = tiny_adapter("llama")
    adapted.peft_config["default"].base_model_name_or_path = "org/base"
    assert reward_model(adapted).base_model == "org/base"
    base = tiny_base("llama")
    base.config.name_or_path = "org/model"
    assert reward_model(base, virtual_rank=2).base_model == "org/model"


def test_the_fingerprint_is_of_the_model_its_tokenizer_and_the_padding_token():
    rm = reward_model()
    expected = model_fingerprint(rm.model, rm.tokenizer, rm.lora, rm.collator.pad_token_id)
    assert rm.fingerprint(None) == expected
    with torch.no_grad():
        rm.model.get_base_model().score.weight[0, 0] += 1
    assert rm.fingerprint(None) != expected


def test_the_head_is_tapped_on_request():
    rm = reward_model()
    names = [site.name for tap in rm.taps(None, include_head=True) for site in tap.sites]
    assert names[-1] == "score.weight"
    assert "score.weight" not in [site.name for tap in rm.taps(None) for site in tap.sites]


def test_base_weights_that_are_not_finite_show_in_the_rewards():
    rm = reward_model()
    with torch.no_grad():
        rm.model.get_base_model().score.weight[0, 0] = float("nan")
    passes = rm.passes_over(rm.taps(None))

    class Nothing:
        gradients_alone = True

        def consume(self, site, p, q, offsets):
            pass

    with pytest.raises(InputError, match=r"row 1: the model's reward is NaN"):
        list(passes.over(rm.tokenize([words(3)], [words(4)]), torch.ones_like, Nothing))


def test_shortcuts_are_tried_once_and_with_the_models_own_readout():
    rm = reward_model()
    assert isinstance(rm.readout, PooledReadout)
    assert rm.shortcuts is rm.shortcuts
    assert rm.passes_over([]).forward.shortcuts is rm.shortcuts


@pytest.mark.parametrize("compiled", ["the model", "a layer"])
def test_a_compiled_model_is_the_same_model(compiled):
    model = tiny_adapter("llama", dtype=torch.float64)
    expected = BayesianRewardModel(model, tiny_tokenizer("llama")).fit(tiny_pairs(2), rank=4, prior_precision=0.5)
    scores = expected.score([words(2)], [words(3)])
    if compiled == "the model":
        model = torch.compile(model, backend="eager")
    else:
        layers = model.get_base_model().model.layers
        layers[1].mlp = torch.compile(layers[1].mlp, backend="eager")
    rm = BayesianRewardModel(model, tiny_tokenizer("llama")).fit(tiny_pairs(2), rank=4, prior_precision=0.5)
    assert rm.posterior.sites == expected.posterior.sites
    assert rm.posterior.record.fingerprint == expected.posterior.record.fingerprint
    found = rm.score([words(2)], [words(3)])
    torch.testing.assert_close(found.mean, scores.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.variance, scores.variance, rtol=1e-9, atol=0)
