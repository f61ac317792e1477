"""Models as they are out there: every row has the reward that plain transformers gives it alone, or is refused."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from dense_reference import DensePosterior
from peft import AdaLoraConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer, words
from tolerances import FLOAT32_INSIDE
from torch import nn
from transformers import LlamaForCausalLM

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model.readout import TensorReadout
from bayesrm_fast.text.examples import TokenizedRow

PRECISION = 0.7
RAGGED = ([words(5, 1)] * 5 + [words(3, 2)], [words(1 + 4 * i % 11, 20 + i) for i in range(6)])

DENSE = ["intermediate.dense", "output.dense"]
PADDING_MATTERS = {
    "fnet": dict(target_modules=DENSE),
    "convbert": dict(target_modules=["query", "value"], base=dict(conv_kernel_size=3)),
    "xlnet": dict(target_modules=["layer_1", "layer_2"], base=dict(d_model=16, n_layer=2, n_head=2, d_inner=24)),
}


def adapter(architecture, dtype=torch.float64, base=None, **lora):
    return tiny_adapter(architecture, dtype=dtype, base=tiny_base(architecture, dtype=dtype, **(base or {})), **lora)


def inputs_of(row):
    types = {} if row.token_type_ids is None else {"token_type_ids": torch.tensor([row.token_type_ids])}
    return {"input_ids": torch.tensor([row.input_ids])} | types


def unbatched(model, rows):
    """What plain transformers gives each row, alone and without padding."""
    with torch.no_grad():
        return torch.cat([model(**inputs_of(row)).logits[:, 0] for row in rows])


def for_dense(row):
    return row.input_ids if row.token_type_ids is None else (row.input_ids, row.token_type_ids)


def assert_right(rm, pairs, texts=RAGGED, relative=FLOAT32_INSIDE):
    """Means and variances against rows alone and autograd in float64."""
    rm.fit(pairs, structure="ggn", rank=16, prior_precision=PRECISION)
    rows = rm.tokenize(*texts)
    tokenized = [(for_dense(pair.chosen), for_dense(pair.rejected)) for pair in rm.tokenize_pairs(pairs)]
    dense = DensePosterior(rm.model, tokenized)
    scores = rm.score(*texts)
    torch.testing.assert_close(scores.mean, unbatched(rm.model, rows), rtol=relative, atol=relative)
    expected = dense.covariance([for_dense(row) for row in rows], "ggn", 16, PRECISION).diagonal()
    np.testing.assert_allclose(scores.variance.numpy(), expected, rtol=relative)
    torch.testing.assert_close(rm.rewards(*texts), scores.mean, rtol=relative, atol=relative)


@pytest.mark.parametrize("architecture", PADDING_MATTERS)
def test_rows_that_padding_would_change_share_calls_of_equal_lengths(architecture):
    rm = BayesianRewardModel(adapter(architecture, **PADDING_MATTERS[architecture]), tiny_tokenizer("bert"))
    assert_right(rm, tiny_pairs(4))
    assert rm.shortcuts.equal_lengths
    assert "differ" in rm.shortcuts.told()["rows of other lengths"]


def test_virtual_adapters_of_a_model_that_padding_would_change():
    base = tiny_base("fnet", dtype=torch.float64)
    rm = BayesianRewardModel(base, tiny_tokenizer("bert"), virtual_rank=3)
    pairs = tiny_pairs(4)
    rm.fit(pairs, structure="ggn", rank=16, prior_precision=PRECISION)
    tokenized = [(for_dense(pair.chosen), for_dense(pair.rejected)) for pair in rm.tokenize_pairs(pairs)]
    virtual = {tap.name: tap.down for tap in rm.virtual.taps}
    dense = DensePosterior(base, tokenized, virtual=virtual)
    rows = [for_dense(row) for row in rm.tokenize(*RAGGED)]
    expected = dense.covariance(rows, "ggn", 16, PRECISION).diagonal()
    np.testing.assert_allclose(rm.score(*RAGGED).variance.numpy(), expected, rtol=FLOAT32_INSIDE)


def test_a_model_that_mixes_the_rows_of_a_batch_is_refused():
    model = adapter("bert")
    model.get_base_model().classifier.register_forward_hook(lambda module, args, output: output + 0.1 * output.mean(0))
    with pytest.raises(InputError, match=r"BertForSequenceClassification: .* depends on the rows beside it"):
        BayesianRewardModel(model, tiny_tokenizer("bert")).rewards(*RAGGED)


def longrope(switch):
    factors = dict(short_factor=[1.0] * 4, long_factor=[3.0, 5.0, 7.0, 9.0])
    return dict(rope_parameters=dict(rope_type="longrope", rope_theta=1e4, factor=4.0, **factors) | switch)


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_short_and_long_rows_have_position_embeddings_of_their_own(architecture):
    base = longrope(dict(original_max_position_embeddings=12)) | dict(original_max_position_embeddings=12)
    targets = ["o_proj", "down_proj"]
    rm = BayesianRewardModel(adapter(architecture, base=base, target_modules=targets), tiny_tokenizer("llama"))
    rows = rm.tokenize(*RAGGED)
    assert {len(row.input_ids) > 12 for row in rows} == {True, False}
    assert_right(rm, tiny_pairs(4))
    assert rm.shortcuts.switches == (12,)
    assert "12 tokens" in dict(rm.shortcuts.reasons)["shared_prefix"]


def dynamic():
    rope = dict(rope_type="dynamic", rope_theta=1e4, factor=4.0)
    return adapter("llama", base=dict(rope_parameters=rope, max_position_embeddings=24))


def test_rows_stay_shorter_than_where_position_embeddings_keep_a_memory():
    rm = BayesianRewardModel(dynamic(), tiny_tokenizer("llama"))
    assert rm.encoder.max_length == 24
    assert_right(rm, tiny_pairs(4))
    with pytest.raises(InputError, match=r"max_length is 40, and past 24 tokens .* take max_length=24 or less"):
        BayesianRewardModel(dynamic(), tiny_tokenizer("llama"), max_length=40)


WINDOWED = {
    "mistral": dict(sliding_window=8),
    "gemma3_text": dict(
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        num_key_value_heads=1,
        head_dim=8,
    ),
    "gpt_neo": dict(
        window_size=8,
        attention_types=[[["global", "local"], 1]],
        num_layers=2,
        num_heads=2,
        num_attention_heads=2,
    ),
}


@pytest.mark.parametrize("architecture", WINDOWED)
def test_beginnings_are_not_shared_where_attention_forgets_them(architecture):
    base = WINDOWED[architecture]
    targets = ["q_proj", "v_proj"]
    rm = BayesianRewardModel(adapter(architecture, base=base, target_modules=targets), tiny_tokenizer("llama"))
    assert not rm.shortcuts.shared_prefix
    assert "8 tokens" in dict(rm.shortcuts.reasons)["shared_prefix"]
    assert_right(rm, tiny_pairs(4))


def test_a_row_that_ends_in_the_tokenizers_padding_token_is_scored_where_the_model_alone_scores_it():
    tokenizer = tiny_tokenizer("llama", "{% for m in messages %}{{ m.content }} </s>{% endfor %}")
    tokenizer.pad_token = tokenizer.eos_token
    rm = BayesianRewardModel(adapter("llama", base=dict(pad_token_id=None)), tokenizer)
    assert all(row.input_ids[-1] == tokenizer.pad_token_id for row in rm.tokenize(*RAGGED))
    assert_right(rm, tiny_pairs(4))


@pytest.mark.parametrize("padding", [-1, 41, 1000])
def test_a_padding_token_without_an_embedding_pads_nothing(padding):
    model = adapter("llama")
    model.config.pad_token_id = padding
    rm = BayesianRewardModel(model, tiny_tokenizer("llama"))
    assert_right(rm, tiny_pairs(4))
    assert model.config.pad_token_id == padding


def test_a_token_beyond_the_embeddings_is_refused_by_its_row():
    rm = BayesianRewardModel(adapter("llama"), tiny_tokenizer("llama"))
    rows = [TokenizedRow([1, 5], None, False, "row 1"), TokenizedRow([1, 41], None, False, "row 2")]
    with pytest.raises(InputError, match=r"row 2: .*token 41.* 41 embeddings"):
        rm.rewards_tokenized(rows)


def falcon():
    return adapter("falcon", target_modules=["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"])


@pytest.mark.parametrize("virtual", [False, True])
def test_a_tapped_output_that_the_model_adds_to_in_place(virtual):
    rm = BayesianRewardModel(falcon(), tiny_tokenizer("llama"), virtual_rank=2 if virtual else None)
    if virtual:
        scores = rm.fit(tiny_pairs(4), rank=4, prior_precision=PRECISION).score(*RAGGED)
        torch.testing.assert_close(scores.mean, unbatched(rm.model, rm.tokenize(*RAGGED)))
    else:
        assert_right(rm, tiny_pairs(4))


WINDOW = dict(attention_window=8, max_position_embeddings=66)


def test_a_model_that_pads_to_its_window_and_calls_its_layers_on_tokens_first():
    model = adapter("longformer", base=WINDOW, target_modules=["query", "value", "query_global", "output.dense"])
    rm = BayesianRewardModel(model, tiny_tokenizer("roberta"))
    assert_right(rm, tiny_pairs(4))
    assert rm.shortcuts.tokens_first


ENCODER_DECODERS = {
    "bart": dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, d_model=16),
    "t5": dict(d_model=16, d_ff=24, d_kv=8, num_layers=2, num_heads=2, decoder_start_token_id=0),
}


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_an_encoder_decoder_is_read_at_its_eos_token(architecture):
    targets = ["q_proj", "v_proj"] if architecture == "bart" else ["q", "v", "wo"]
    base = ENCODER_DECODERS[architecture] | dict(eos_token_id=2)
    rm = BayesianRewardModel(adapter(architecture, base=base, target_modules=targets), tiny_tokenizer("roberta"))
    assert_right(rm, tiny_pairs(4))


def test_a_head_of_one_output_counts_whatever_the_configuration_says():
    model = tiny_base("llama", dtype=torch.float64)
    model.config.num_labels = 2
    rm = BayesianRewardModel(tiny_adapter("llama", base=model, dtype=torch.float64), tiny_tokenizer("llama"))
    assert_right(rm, tiny_pairs(4))


class Wrapped(torch.nn.Module):
    """Gives what `read` makes of a classifier's output."""

    def __init__(self, model, read):
        super().__init__()
        self.model, self.read, self.config = model, read, model.config

    def forward(self, **inputs):
        return self.read(self.model(**inputs))


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda output: output.logits, r"Wrapped: it gives a tensor \[1, 1\]: pass readout=TensorReadout\(\)"),
        (lambda output: type(output)(logits=output.logits[:, 0]), r"gives logits \[1, 1\], and it gives .* \[1\]"),
        (lambda output: type(output)(logits=output.logits.expand(1, 9, 1)), r"Seq.* with logits \[1, 9, 1\]: load"),
        (lambda output: type(output)(), "without logits"),
    ],
)
def test_an_output_that_is_no_sequence_classifiers_is_named(read, told):
    rm = BayesianRewardModel(Wrapped(tiny_base("llama"), read), tiny_tokenizer("llama"), virtual_rank=2)
    with pytest.raises(InputError, match=told):
        rm.rewards(*RAGGED)


def test_a_language_model_is_named():
    model = LlamaForCausalLM(tiny_base("llama").config)
    with pytest.raises(InputError, match="LlamaForCausalLM is a language model"):
        BayesianRewardModel(model, tiny_tokenizer("llama"), virtual_rank=2)


def test_copies_on_several_devices_and_absent_weights_are_refused():
    with pytest.raises(InputError, match=r"within DataParallel: pass its \.module"):
        BayesianRewardModel(torch.nn.DataParallel(tiny_adapter("llama")), tiny_tokenizer("llama"))
    model = tiny_adapter("llama")
    model.get_base_model().model.layers[1].mlp.to("meta")
    with pytest.raises(InputError, match=r"weights on the meta device .*: model\.layers\.1\.mlp"):
        BayesianRewardModel(model, tiny_tokenizer("llama"))


def test_base_weights_that_accelerate_has_offloaded_are_served():
    tokenizer, texts = tiny_tokenizer("llama"), (["a", "a"], ["able", "zoo a"])
    expected = BayesianRewardModel(tiny_adapter("llama"), tokenizer).fit(tiny_pairs(), rank=4).score(*texts)
    model = tiny_adapter("llama")
    cpu_offload(model.get_base_model().model.layers[1].post_attention_layernorm, torch.device("cpu"))
    scores = BayesianRewardModel(model, tokenizer).fit(tiny_pairs(), rank=4).score(*texts)
    assert torch.equal(scores.mean, expected.mean)
    assert torch.equal(scores.variance, expected.variance)


def test_adalora_is_refused_by_name():
    config = AdaLoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], total_step=10)
    with pytest.raises(InputError, match=r"of the kind adalora\.layer\.SVDLinear: model\.layers\.0"):
        BayesianRewardModel(get_peft_model(tiny_base("llama"), config), tiny_tokenizer("llama"))


def test_layers_that_run_without_autograd_are_refused():
    model = adapter("llama")
    model.get_base_model().model.forward = torch.no_grad()(model.get_base_model().model.forward)
    with pytest.raises(InputError, match="LlamaForSequenceClassification: autograd does not see its adapted layers"):
        BayesianRewardModel(model, tiny_tokenizer("llama")).fit(tiny_pairs(2))


class Wrapper(nn.Module):
    """A model of one's own around another: its head is its own, or the classifier's."""

    def __init__(self, inner, is_classifier):
        super().__init__()
        self.inner = inner
        self.v_head = None if is_classifier else nn.Linear(16, 1)

    def forward(self, input_ids, attention_mask, **_):
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        if self.v_head is None:
            return output.logits[:, 0]
        last = attention_mask.sum(1) - 1
        return self.v_head(output.last_hidden_state[torch.arange(len(last)), last])


@pytest.mark.parametrize("is_classifier", [True, False])
def test_a_trainable_head_of_a_model_around_an_adapter_is_served(is_classifier):
    classifier = tiny_adapter("llama")
    rm = BayesianRewardModel(classifier, tiny_tokenizer("llama"))
    inner = classifier
    if not is_classifier:
        inner = get_peft_model(tiny_base("llama").model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    wrapped = BayesianRewardModel(
        Wrapper(inner, is_classifier).eval(), tiny_tokenizer("llama"), readout=TensorReadout()
    )
    found = wrapped.fit(tiny_pairs(3), rank=8, prior_precision=PRECISION).score(*RAGGED)
    assert found.variance.min() > 0
    if is_classifier:
        expected = rm.fit(tiny_pairs(3), rank=8, prior_precision=PRECISION).score(*RAGGED)
        torch.testing.assert_close(found.mean, expected.mean)
        torch.testing.assert_close(found.variance, expected.variance, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_prompt_learning_is_named(kind):
    model = get_peft_model(tiny_base("llama"), kind(task_type="SEQ_CLS", num_virtual_tokens=3))
    with pytest.raises(InputError, match="cannot serve prompt learning"):
        BayesianRewardModel(model, tiny_tokenizer("llama"), virtual_rank=2)


def test_attention_without_a_backward_pass_is_named():
    base = tiny_base("llama")
    base.set_attn_implementation("flex_attention")
    rm = BayesianRewardModel(tiny_adapter("llama", base=base), tiny_tokenizer("llama"))
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="FlexAttention does not support backward on CPU"):
            rm.fit(tiny_pairs(3), rank=4)
