"""Which adapters are served and which are refused by name."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_adapter, tiny_base, tiny_tokenizer

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model.hashes import adapter_hash
from bayesrm_fast.model.head import find_head
from bayesrm_fast.model.lora import find_lora_taps

Q0 = r"model\.layers\.0\.self_attn\.q_proj"


def refused(model, message):
    with pytest.raises(InputError, match=message):
        BayesianRewardModel(model, tiny_tokenizer("llama"))


def test_sites_have_the_shapes_of_their_weights():
    model = tiny_adapter("llama", rank_pattern={"up_proj": 5})
    sites = {site.name: site for tap in find_lora_taps(model) for site in tap.sites}
    up = "model.layers.1.mlp.up_proj"
    assert (sites[f"{up}.lora_A"].r, sites[f"{up}.lora_A"].d, sites[f"{up}.lora_A"].activations) == (5, 16, "q")
    assert (sites[f"{up}.lora_B"].r, sites[f"{up}.lora_B"].d, sites[f"{up}.lora_B"].activations) == (5, 24, "p")


def test_dora_is_refused():
    refused(tiny_adapter("llama", use_dora=True), f"Dora: {Q0}")


def test_lora_on_an_embedding_is_refused():
    refused(tiny_adapter("llama", target_modules=["embed_tokens", "q_proj"]), r"embedding: model\.embed_tokens")


def test_lora_on_a_convolution_is_refused():
    base = tiny_base("llama")
    base.model.layers[0].extra = torch.nn.Conv1d(4, 4, 3)
    refused(
        tiny_adapter("llama", base=base, target_modules=["q_proj", "extra"]), r"convolution: model\.layers\.0\.extra"
    )


def test_a_merged_adapter_is_refused():
    model = tiny_adapter("llama")
    model.merge_adapter()
    refused(model, f"merged adapter .*{Q0}")


def test_a_disabled_adapter_is_refused():
    model = tiny_adapter("llama")
    with model.disable_adapter():
        refused(model, f"disabled adapter .*{Q0}")


def test_no_adapter_is_refused():
    refused(tiny_base("llama"), "no LoRA adapter")


def test_another_kind_of_adapter_is_refused():
    from peft import IA3Config

    model = get_peft_model(
        tiny_base("llama"), IA3Config(task_type="SEQ_CLS", target_modules=["q_proj"], feedforward_modules=[])
    )
    refused(model, f"not LoRA: {Q0}")


def test_two_active_adapters_are_refused():
    model = tiny_adapter("llama", target_modules=["q_proj"])
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.set_adapter(["default", "second"])
    refused(model, f"more than one active adapter: {Q0}")


@pytest.mark.parametrize(
    "lora", [{"bias": "lora_only"}, {"bias": "all"}, {"modules_to_save": ["score", "norm"]}, {"lora_bias": True}]
)
def test_other_trained_weights_are_refused(lora):
    base = tiny_base("llama", attention_bias=True)
    refused(tiny_adapter("llama", base=base, **lora), "neither LoRA nor the score head|LoRA bias")


def test_a_trainable_base_weight_is_refused():
    model = tiny_adapter("llama")
    model.get_base_model().model.norm.weight.requires_grad_(True)
    refused(model, r"neither LoRA nor the score head: model\.norm\.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_site(value):
    model = tiny_adapter("llama")
    with torch.no_grad():
        model.get_base_model().model.layers[0].self_attn.q_proj.lora_B["default"].weight[0, 0] = value
    refused(model, f"NaN or infinite: {Q0}\\.lora_B")


def test_base_weights_that_are_not_finite_show_in_the_rewards():
    model = tiny_adapter("llama")
    with torch.no_grad():
        model.get_base_model().score.weight[0, 0] = float("nan")
    rm = BayesianRewardModel(model, tiny_tokenizer("llama"))
    with pytest.raises(InputError, match="row 1: the model.s reward is NaN"):
        rm.fit([{"prompt": "a", "chosen": "able", "rejected": "act"}])


@pytest.mark.parametrize(
    ("architecture", "name", "lora"),
    [
        ("llama", "score", {}),
        ("llama", "score", {"modules_to_save": ["score"]}),
        ("bert", "classifier", {}),
        ("roberta", "classifier.out_proj", {}),
        ("deberta-v2", "classifier", {}),
    ],
)
def test_the_head_is_found(architecture, name, lora):
    head = find_head(tiny_adapter(architecture, **lora))
    assert head.name == name or head.name.startswith("classifier")
    assert head.module.out_features == 1


def test_lora_on_the_head_is_no_head_of_the_posterior():
    model = PeftModel(tiny_base("bert"), LoraConfig(r=2, target_modules=["query", "classifier"]))
    rm = BayesianRewardModel(model, tiny_tokenizer("bert"))
    with pytest.raises(InputError, match="include_head"):
        rm.fit([{"prompt": "a", "chosen": "able", "rejected": "act"}], include_head=True)


def test_hash_depends_on_the_weights_and_not_on_the_adapters_name_or_dtype():
    same = [adapter_hash(find_lora_taps(tiny_adapter("llama", adapter_name=name))) for name in ("default", "other")]
    assert same[0] == same[1]
    changed = tiny_adapter("llama")
    with torch.no_grad():
        changed.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"].weight[0, 0] += 1e-3
    assert adapter_hash(find_lora_taps(changed)) != same[0]


def test_several_outputs_need_their_weights():
    model = tiny_adapter("llama", num_labels=3)
    refused(model, "3 outputs")
    with pytest.raises(InputError, match="3 finite numbers"):
        BayesianRewardModel(model, tiny_tokenizer("llama"), output_weights=[1.0, 2.0])
