"""Weights that accelerate has offloaded: the same numbers, the same fingerprint, and none kept by a pass."""

from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook, add_hook_to_module
from tiny import tiny_base, tiny_pairs, words
from torch import nn

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model.exclusive import exclusively
from bayesrm_fast.model.offloaded import bringing, input_device, offloaded_weights

TEXTS = [words(3, 1)] * 4, [words(5, i) for i in range(4)]
NAMES = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "score"]
LAST_LAYER = {name: "disk" if name == "model.layers.1" else "cpu" for name in NAMES}
EMBEDDINGS = {name: "disk" if name == "model.embed_tokens" else "cpu" for name in NAMES}
ALL = {name: "cpu" if name == "model.rotary_emb" else "disk" for name in NAMES}


def load(folder, device_map, tmp_path, **options):
    return BayesianRewardModel.from_pretrained(
        folder, device_map=device_map, offload_folder=str(tmp_path / "offloaded"), **options
    )


@pytest.mark.parametrize("device_map", ["auto", LAST_LAYER, ALL], ids=["auto", "last layer", "all"])
@pytest.mark.parametrize("structure", ["kfac", "ggn"])
def test_offloaded_weights_give_the_same_posterior(base_folder, tmp_path, structure, device_map):
    options = dict(structure=structure, rank=4)
    expected = BayesianRewardModel.from_pretrained(base_folder, virtual_rank=2, device="cpu")
    expected.fit(tiny_pairs(), **options)
    rm = load(base_folder, device_map, tmp_path, virtual_rank=2).fit(tiny_pairs(), **options)
    assert bool(offloaded_weights(rm.model)) == (device_map != "auto")
    for name in ("mean", "variance"):
        assert torch.equal(getattr(rm.score(*TEXTS), name), getattr(expected.score(*TEXTS), name))
    assert rm.posterior.record == expected.posterior.record  # the fingerprint with it
    rm.save_pretrained(tmp_path / "fitted")
    variance = rm.score(*TEXTS).variance
    again = load(tmp_path / "fitted", ALL, tmp_path)
    assert torch.equal(again.score(*TEXTS).variance, variance)


def test_an_offloaded_head_is_part_of_the_posterior(base_folder, tmp_path):
    options = dict(rank=4, include_head=True, prior_precision="evidence")
    expected = BayesianRewardModel.from_pretrained(base_folder, virtual_rank=2, device="cpu")
    expected.fit(tiny_pairs(), **options)
    rm = load(base_folder, ALL, tmp_path, virtual_rank=2).fit(tiny_pairs(), **options)
    assert rm.posterior.record == expected.posterior.record
    assert torch.equal(rm.score(*TEXTS).variance, expected.score(*TEXTS).variance)


@pytest.mark.parametrize("device_map", [EMBEDDINGS, ALL], ids=["embeddings", "all"])
def test_another_thread_waits_also_while_the_first_weight_is_brought(base_folder, tmp_path, device_map):
    rm = load(base_folder, device_map, tmp_path, virtual_rank=2)
    embeddings, asked = rm.model.model.embed_tokens, []
    forward = embeddings._old_forward  # what accelerate calls once the weight is there

    def ask():
        with exclusively(rm.model):
            pass

    def asking(*args):
        assert not embeddings.weight.is_meta
        asked.append(others.submit(ask))
        assert not wait(asked, timeout=0.1).done
        return forward(*args)

    embeddings._old_forward = asking
    with ThreadPoolExecutor() as others:
        rm.rewards(TEXTS[0][:1], TEXTS[1][:1])
    assert asked


def test_another_offloaded_model_is_told_by_its_fingerprint(base_folder, tmp_path):
    rm = BayesianRewardModel.from_pretrained(base_folder, virtual_rank=2, device="cpu").fit(tiny_pairs(), rank=4)
    rm.save_pretrained(tmp_path / "fitted")
    other = load(base_folder, ALL, tmp_path, virtual_rank=2)
    weights = other.model.model.layers[0].mlp.up_proj._hf_hook.weights_map
    brought = bringing(other.model)
    weight = other.model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(brought(weight), weights["weight"])
    kept = dict.fromkeys(["weight"], weights["weight"] * 2)
    other.model.model.layers[0].mlp.up_proj._hf_hook.weights_map = kept
    assert rm.posterior.record.differing(other.fingerprint(rm.virtual)) == ["base weights"]


def test_a_pass_keeps_no_offloaded_weight_for_its_backward_pass(base_folder, tmp_path):
    rm = load(base_folder, ALL, tmp_path, virtual_rank=2).fit(tiny_pairs(), rank=4)
    passes, rows = rm.passes(), rm.tokenize(*TEXTS)
    shape = set(rm.model.model.layers[0].mlp.gate_proj.weight.shape)

    def weights_kept():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
            list(passes.over(rows, torch.ones_like, rm.posterior.variance_consumer))
        return sum(1 for one in kept if len(one) == 2 and set(one) == shape)

    assert weights_kept() == 0
    passes.budget.checkpoints = False
    assert weights_kept() > 0


def test_a_lora_adapter_on_offloaded_weights_is_refused_by_their_names(adapter_folder, tmp_path):
    with pytest.raises(
        InputError, match=r"offloaded \(model\.layers\.1\.self_attn\.q_proj\.weight, .*virtual adapters"
    ):
        load(adapter_folder, LAST_LAYER, tmp_path)


@pytest.mark.parametrize(("execution", "expected"), [("cpu", "cpu"), (1, "cuda:1"), (None, "meta")])
@pytest.mark.parametrize("is_sequential", [False, True])
def test_batches_go_where_the_first_weight_is_brought(execution, expected, is_sequential):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to("meta")
    hook = AlignDevicesHook(execution)
    model[0]._hf_hook = SequentialHook(hook) if is_sequential else hook
    assert str(input_device(model)) == expected


def test_a_weight_that_stays_is_where_batches_go():
    model = tiny_base("llama")
    assert input_device(model) == torch.device("cpu")
    assert input_device(nn.Identity()) == torch.device("cpu")
    add_hook_to_module(model.model.embed_tokens, AlignDevicesHook("cpu"))
    assert bringing(model)(model.score.weight) is model.score.weight
