"""Which adapters are served and which are refused by name."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_adapter, tiny_base

from bayesrm_fast import InputError
from bayesrm_fast.model.lora import find_lora_taps

Q0 = r"model\.layers\.0\.self_attn\.q_proj"


def refused(model, message):
    with pytest.raises(InputError, match=message):
        find_lora_taps(model)


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
    refused(tiny_adapter("llama", base=base, **lora), "neither LoRA nor after the backbone|LoRA bias")


def test_a_trainable_base_weight_is_refused():
    model = tiny_adapter("llama")
    model.get_base_model().model.norm.weight.requires_grad_(True)
    refused(model, r"neither LoRA nor after the backbone: model\.norm\.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_site(value):
    model = tiny_adapter("llama")
    with torch.no_grad():
        model.get_base_model().model.layers[0].self_attn.q_proj.lora_B["default"].weight[0, 0] = value
    refused(model, f"NaN or infinite: {Q0}\\.lora_B")


@pytest.mark.parametrize(
    ("architecture", "copied"),
    [
        ("bert", ["pooler"]),
        ("bert", ["pooler.dense", "classifier"]),
        ("deberta-v2", ["pooler"]),
        ("roberta", ["classifier.dense"]),
        ("roberta", ["classifier"]),
    ],
)
def test_layers_that_are_saved_with_the_adapter_are_served_frozen(architecture, copied):
    plain, model = tiny_adapter(architecture), tiny_adapter(architecture, modules_to_save=copied)
    names = [site.name for tap in find_lora_taps(model) for site in tap.sites]
    assert names == [site.name for tap in find_lora_taps(plain) for site in tap.sites]


def test_copied_layers_inside_of_the_backbone_are_refused():
    refused(tiny_adapter("bert", modules_to_save=["dense"], target_modules=["query"]), r"attention\.output\.dense")


def test_an_adapter_that_is_offloaded_is_refused():
    model = tiny_adapter("llama")
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    layer.lora_A["default"].to("meta")
    refused(model, f"adapters that are offloaded .*: {Q0}$")
