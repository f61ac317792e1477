"""The layer that gives the scores."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from tiny import tiny_adapter, tiny_base
from torch import nn

from bayesrm_fast import InputError
from bayesrm_fast.model.head import find_head, find_head_tap
from bayesrm_fast.model.lora import find_lora_taps


@pytest.mark.parametrize(
    ("architecture", "name", "lora"),
    [
        ("llama", "score", {}),
        ("llama", "score", {"modules_to_save": ["score"]}),
        ("bert", "classifier", {}),
        ("roberta", "classifier.out_proj", {}),
        ("roberta", "classifier.out_proj", {"modules_to_save": ["classifier"]}),
        ("roberta", "classifier.out_proj", {"modules_to_save": ["classifier.dense", "out_proj"]}),
        ("deberta-v2", "classifier", {}),
    ],
)
def test_the_head_is_found(architecture, name, lora):
    head = find_head(tiny_adapter(architecture, **lora))
    assert head.name == name
    assert head.module.out_features == 1


@pytest.mark.parametrize("lora", [{}, {"modules_to_save": ["score"]}])
def test_the_head_is_the_one_that_scores(lora):
    """Of a head that the adapter has trained, the copy that is active and not the original."""
    model = tiny_adapter("llama", **lora)
    outputs = []
    find_head(model).module.register_forward_hook(lambda module, args, output: outputs.append(output))
    logits = model(input_ids=torch.tensor([[1, 5, 9]])).logits
    assert torch.equal(outputs[0][:, -1], logits)


def test_of_two_adapters_trained_heads_it_is_the_active_ones():
    lora = {"r": 2, "target_modules": ["query"], "modules_to_save": ["classifier.dense", "out_proj"]}
    model = tiny_adapter("roberta", **lora)
    model.add_adapter("second", LoraConfig(task_type="SEQ_CLS", **lora))
    for name in ("default", "second"):
        model.set_adapter(name)
        wrapper = model.get_base_model().classifier.out_proj
        assert find_head(model).module is wrapper.modules_to_save[name]


def test_a_head_has_one_site_whose_small_side_is_the_outputs():
    head = find_head(tiny_base("llama", num_labels=3))
    (site,) = head.sites
    assert (site.name, site.r, site.d, site.activations) == ("score.weight", 3, 16, "q")
    assert head.weights[0].shape == (3, 16)


def test_a_head_that_was_replaced_counts_and_without_one_there_is_none():
    assert find_head(nn.Sequential(nn.Linear(4, 1))) is None
    base = tiny_base("llama")
    base.score = nn.Linear(16, 2)
    assert find_head(base).module is base.score
    base.score = nn.Identity()
    assert find_head(base) is None
    with pytest.raises(InputError, match="include_head needs a score head"):
        find_head_tap(base, [])


def test_a_head_with_an_adapter_of_its_own_is_no_site():
    model = PeftModel(tiny_base("bert"), LoraConfig(r=2, target_modules=["query", "classifier"]))
    with pytest.raises(InputError, match="include_head needs a score head that is a plain linear layer"):
        find_head_tap(model, [tap.module for tap in find_lora_taps(model)])
    plain = tiny_adapter("bert")
    assert find_head_tap(plain, [tap.module for tap in find_lora_taps(plain)]).name == "classifier"
