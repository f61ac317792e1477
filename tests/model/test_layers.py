"""Layers and their paths."""

import pytest
import torch.distributed as dist
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model.layers import (
    check_model,
    has_adapter,
    is_after_backbone,
    last_layer,
    layer_stack,
    linear_modules,
    name_of_copied,
    outside_adapters,
    plain_name,
    refuse,
)


def test_a_plain_name_is_that_without_peft():
    assert plain_name("base_model.model.score") == "score"
    assert plain_name("base_model.score") == "score"
    assert plain_name("model.layers.0") == "model.layers.0"


def test_a_plain_name_is_that_without_compilation():
    assert plain_name("_orig_mod.base_model.model.layers.0._orig_mod.mlp") == "layers.0.mlp"
    assert plain_name("_orig_mod") == ""


def test_refusals_name_eight_and_count_the_rest():
    refuse([], "anything")
    with pytest.raises(InputError, match=r"^cannot serve a thing: a, b$"):
        refuse(["a", "b"], "a thing")
    with pytest.raises(InputError, match=r"^cannot serve a thing: 0, 1, 2, 3, 4, 5, 6, 7 and 3 more$"):
        refuse([str(i) for i in range(11)], "a thing")


@pytest.mark.parametrize("make", [tiny_base, tiny_adapter])
@pytest.mark.parametrize(("architecture", "last"), [("llama", "model.layers.1"), ("bert", "bert.encoder.layer.1")])
def test_the_layers_are_the_longest_list(architecture, last, make):
    model = make(architecture)
    names = {module: plain_name(name) for name, module in model.named_modules()}
    assert len(layer_stack(model)) == 2
    assert names[last_layer(model)] == last


def test_a_model_without_a_list_has_no_last_layer():
    assert layer_stack(nn.Linear(2, 2)) == []
    assert last_layer(nn.Linear(2, 2)) is None


def test_adapters_are_seen_and_left_out():
    base, adapted = tiny_base("llama"), tiny_adapter("llama", modules_to_save=["score"])
    assert (has_adapter(base), has_adapter(adapted)) == (False, True)
    names = {name for name, _ in outside_adapters(adapted)}
    assert not [name for name in names if "lora_" in name]
    assert "model.layers.0.self_attn.q_proj.base_layer" in names


def test_linear_layers_and_their_sizes():
    found = linear_modules(tiny_base("gpt2"))  # whose layers hold their weights transposed
    assert found["transformer.h.0.attn.c_attn"][1:] == (16, 48)
    assert found["score"][1:] == (16, 1)
    copied = linear_modules(tiny_adapter("gpt2", modules_to_save=["score"]))
    assert len([name for name in copied if name.startswith("score")]) == 1
    adapted = linear_modules(tiny_adapter("llama"))
    assert adapted["model.layers.0.mlp.up_proj.base_layer"][1:] == (16, 24)
    assert not [name for name in adapted if "lora_" in name]
    plain = {name.removesuffix(".base_layer") for name in adapted if not name.startswith("score")}
    assert plain | {"score"} == set(linear_modules(tiny_base("llama")))


def test_a_copied_layers_name_is_the_layers():
    assert name_of_copied("bert.pooler.dense.modules_to_save.default") == "bert.pooler.dense"
    assert name_of_copied("classifier.original_module.dense") == "classifier.dense"
    assert name_of_copied("model.layers.0") == "model.layers.0"


@pytest.mark.parametrize(
    ("architecture", "after", "inside"),
    [
        ("bert", ["bert.pooler.dense", "classifier"], ["bert.encoder.layer.0.output.dense", "bert.embeddings"]),
        ("deberta-v2", ["pooler.dense", "classifier"], ["deberta.encoder.layer.1.output.dense"]),
        ("roberta", ["classifier.dense", "classifier.out_proj"], ["roberta.encoder.layer.1.output.dense"]),
        ("llama", ["score"], ["model.norm", "model.layers.1.mlp", "model.embed_tokens"]),
    ],
)
def test_what_stands_between_backbone_and_reward(architecture, after, inside):
    for model in (tiny_base(architecture), tiny_adapter(architecture)):
        assert all(is_after_backbone(model, name) for name in after)
        assert not any(is_after_backbone(model, name) for name in inside)
    assert not is_after_backbone(nn.Linear(2, 2), "score")


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_weights_that_fsdp_shards_are_refused_by_their_names(one_rank):
    model = tiny_adapter("llama")
    rm = BayesianRewardModel(model, tiny_tokenizer("llama")).fit(tiny_pairs(), rank=4)
    fully_shard(model.get_base_model().model.layers[1], mesh=one_rank)
    message = r"FSDP2 or tensor parallelism has sharded .* model\.layers\.1\.self_attn\.q_proj"
    with pytest.raises(InputError, match=message):
        BayesianRewardModel(model, tiny_tokenizer("llama"))
    with pytest.raises(InputError, match=message):
        rm.fit(tiny_pairs(), rank=4)
    with pytest.raises(InputError, match=message):
        rm.score(["a"], ["able"])


def test_weights_that_tensor_parallelism_shards_are_refused_by_their_names(one_rank):
    model = tiny_base("llama")
    parallelize_module(model, one_rank, {"model.layers.0.mlp.up_proj": ColwiseParallel()})
    with pytest.raises(InputError, match=r"tensor parallelism has sharded .*: model\.layers\.0\.mlp\.up_proj\.weight$"):
        BayesianRewardModel(model, tiny_tokenizer("llama"), virtual_rank=2)


def test_other_sharding_is_refused_by_name(monkeypatch):
    model = tiny_base("llama")
    model.score.weight.ds_id = 3
    with pytest.raises(InputError, match=r"ZeRO-3 has sharded over ranks .*: score\.weight$"):
        check_model(model)
    del model.score.weight.ds_id
    monkeypatch.setattr(FullyShardedDataParallel, "__init__", nn.Module.__init__)
    model.model.norm = FullyShardedDataParallel()
    with pytest.raises(InputError, match=r"modules of FullyShardedDataParallel, .*: model\.norm$"):
        check_model(model)


@pytest.mark.parametrize("option", [{"tp_plan": "auto"}, {"tp_size": 2}])
def test_a_load_that_would_shard_is_refused_before_it_begins(adapter_folder, option):
    with pytest.raises(InputError, match=f"cannot serve {next(iter(option))}: .*device_map='auto'"):
        BayesianRewardModel.from_pretrained(adapter_folder, **option)
