"""By which hashes weights are known again."""

import torch
from tiny import tiny_adapter, tiny_base
from transformers.pytorch_utils import Conv1D

from bayesrm_fast.model.hashes import adapter_hash, model_hash
from bayesrm_fast.model.head import find_head
from bayesrm_fast.model.lora import find_lora_taps


def test_hash_depends_on_the_weights_and_not_on_the_adapters_name_or_dtype():
    same = [adapter_hash(find_lora_taps(tiny_adapter("llama", adapter_name=name))) for name in ("default", "other")]
    assert same[0] == same[1]
    changed = tiny_adapter("llama")
    with torch.no_grad():
        changed.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"].weight[0, 0] += 1e-3
    assert adapter_hash(find_lora_taps(changed)) != same[0]


def test_the_heads_hash_is_that_of_its_rounding():
    heads = [find_head(tiny_base("llama", dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)]
    assert adapter_hash([heads[0]]) == adapter_hash([heads[1]])
    with torch.no_grad():
        heads[0].module.weight[0, 0] += 1
    assert adapter_hash([heads[0]]) != adapter_hash([heads[1]])


def test_a_model_has_one_hash_in_either_dtype_and_under_any_adapter():
    expected = model_hash(tiny_base("llama"))
    assert model_hash(tiny_base("llama", dtype=torch.bfloat16)) == expected
    assert model_hash(tiny_adapter("llama")) == expected
    trained = tiny_adapter("llama", modules_to_save=["score"], r=5)
    with torch.no_grad():
        trained.get_base_model().score.modules_to_save["default"].weight.add_(1)
    assert model_hash(trained) == expected


def test_a_models_hash_depends_on_every_weight():
    found = {model_hash(tiny_base("gpt2"))}
    names = [name for name, _ in tiny_base("gpt2").named_parameters()]
    assert any(isinstance(module, Conv1D) for module in tiny_base("gpt2").modules())
    for name in names[:: max(len(names) // 6, 1)]:
        changed = tiny_base("gpt2")
        with torch.no_grad():
            changed.get_parameter(name).view(-1)[0] += 1
        found.add(model_hash(changed))
    assert len(found) == 1 + len(names[:: max(len(names) // 6, 1)])
