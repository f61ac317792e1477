"""Adapters come back as they were in memory, however they were put into a model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from tiny import tiny_base, tiny_pairs, tiny_tokenizer, words
from transformers import AutoModelForSequenceClassification

from bayesrm_fast import BayesianRewardModel, InputError


def load(folder):
    return BayesianRewardModel.from_pretrained(folder, device="cpu")


LORA = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


def assert_comes_back(rm, tmp_path):
    texts = [words(3, 1)] * 2, [words(4, 2), words(9, 3)]
    rm.fit(tiny_pairs(3), rank=4, prior_precision=0.5)
    rm.save_pretrained(tmp_path / "first")
    loaded = load(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    for other in (loaded, load(tmp_path / "second")):
        for name in ("mean", "variance"):
            assert torch.equal(getattr(other.score(*texts), name), getattr(rm.score(*texts), name))


@pytest.fixture
def unpadded(tmp_path):
    """A base model whose configuration has no padding token, as Llama's, and its tokenizer."""
    tiny_base("llama", pad_token_id=None).save_pretrained(tmp_path / "base")
    tiny_tokenizer("llama").save_pretrained(tmp_path / "base")
    return AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")


def test_a_padding_token_that_was_set_in_memory_comes_back(unpadded, tmp_path):
    unpadded.config.pad_token_id = 0
    model = get_peft_model(unpadded, LoraConfig(task_type="SEQ_CLS", **LORA))
    assert_comes_back(BayesianRewardModel(model, tiny_tokenizer("llama")), tmp_path)
    assert load(tmp_path / "first").collator.pad_token_id == 0


def test_embeddings_of_added_tokens_are_saved_with_the_adapter(unpadded, tmp_path):
    tokenizer = tiny_tokenizer("llama")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    unpadded.resize_token_embeddings(len(tokenizer))
    unpadded.config.pad_token_id = tokenizer.pad_token_id
    model = get_peft_model(unpadded, LoraConfig(task_type="SEQ_CLS", **LORA))
    assert_comes_back(BayesianRewardModel(model, tokenizer), tmp_path)


@pytest.mark.parametrize("task", ["SEQ_CLS", None])
@pytest.mark.parametrize("by", ["peft", "transformers"])
def test_an_adapter_without_a_peft_model_around_it_is_saved_as_one(base_folder, tmp_path, by, task):
    base = AutoModelForSequenceClassification.from_pretrained(base_folder)
    config = LoraConfig(task_type=task, **LORA)
    if by == "peft":
        inject_adapter_in_model(config, base)
    else:
        base.add_adapter(config)
    with torch.no_grad():
        base.score.weight.add_(0.5)  # a trained head
    assert_comes_back(BayesianRewardModel(base, tiny_tokenizer("llama")), tmp_path)
    assert config.modules_to_save is None


def test_of_several_active_adapters_none_is_saved(base_folder, tmp_path):
    base = AutoModelForSequenceClassification.from_pretrained(base_folder)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    model.add_adapter("other", LoraConfig(target_modules=["v_proj"]))
    model.base_model.set_adapter(["default", "other"])
    rm = BayesianRewardModel(model, tiny_tokenizer("llama")).fit(tiny_pairs(3), rank=4, prior_precision=0.5)
    with pytest.raises(InputError, match="default, other are active, and one alone can be saved"):
        rm.save_pretrained(tmp_path / "saved")


def test_a_chat_template_that_was_set_after_the_model_was_made_is_used(adapter_folder, tmp_path):
    rm = BayesianRewardModel.from_pretrained(adapter_folder, device="cpu")
    rm.tokenizer.chat_template = "{% for m in messages %}<s> {{ m['content'] }} </s>{% endfor %}"
    assert rm.encoder.joining == "template"
    assert_comes_back(rm, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_adapters_are_the_same_in_a_wider_model(base_folder, adapter_folder, tmp_path, dtype):
    rm = BayesianRewardModel.from_pretrained(adapter_folder, device="cpu")
    rm.fit(tiny_pairs(3), rank=4, prior_precision=0.5).save_pretrained(tmp_path / "saved")
    assert BayesianRewardModel.from_pretrained(tmp_path / "saved", device="cpu", dtype=dtype).posterior is not None


def test_adapters_with_embeddings_of_their_own_do_not_share_a_base(unpadded, tmp_path):
    tokenizer = tiny_tokenizer("llama")
    tokenizer.add_tokens(["zebra"])
    unpadded.resize_token_embeddings(len(tokenizer))
    rm = BayesianRewardModel(get_peft_model(unpadded, LoraConfig(task_type="SEQ_CLS", **LORA)), tokenizer)
    rm.fit(tiny_pairs(3), rank=4, prior_precision=0.5).save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match=r"brings embed_tokens\.weight of its own"):
        load(tmp_path / "saved").with_adapter(tmp_path / "saved", "other")
