"""Which layers get virtual adapters."""

import pytest
import torch
from tiny import tiny_adapter, tiny_base
from torch import nn

from bayesrm_fast import InputError
from bayesrm_fast.model.forward import Forward
from bayesrm_fast.model.readout import PooledReadout
from bayesrm_fast.model.virtual import VirtualTap, chosen_layers, keeping_input, linear_layers
from bayesrm_fast.model.virtual_options import VirtualOptions
from bayesrm_fast.text.batches import Collator
from bayesrm_fast.text.examples import TokenizedRow


def layers_of(model):
    forward = Forward(model, PooledReadout(torch.ones(1)))
    rows = [TokenizedRow(ids, None, False) for ids in ([1, 5, 9, 7], [1, 6])]
    return linear_layers(forward, Collator(0, 44, torch.device("cpu"))(rows))


@pytest.mark.parametrize(
    ("targets", "name", "is_meant"),
    [
        (["q_proj"], "model.layers.0.self_attn.q_proj", True),
        (["proj"], "model.layers.0.self_attn.q_proj", False),
        (["self_attn.q_proj", "up_proj"], "model.layers.1.mlp.up_proj", True),
        (["q_proj"], "q_proj", True),
        (r".*\.1\..*proj", "model.layers.1.mlp.up_proj", True),
        (r"up_proj", "model.layers.1.mlp.up_proj", False),
    ],
)
def test_targets_are_last_parts_of_a_path_or_an_expression_for_all_of_it(targets, name, is_meant):
    assert VirtualOptions(2, targets).match(name) == is_meant


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0,), "whole number of at least 1, not 0"),
        ((2.0,), "whole number of at least 1"),
        ((True,), "whole number of at least 1"),
        ((2, []), "virtual_targets is empty"),
        ((2, ""), "virtual_targets is empty"),
        ((2, "("), "is no regular expression"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        VirtualOptions(*options)


def test_a_tap_has_one_site_and_a_b_of_zero():
    tap = VirtualTap("layer", nn.Linear(5, 7), torch.ones(2, 5), 7)
    (site,) = tap.sites
    assert (site.name, site.r, site.d, site.activations) == ("layer.virtual_B", 2, 7, "p")
    assert tap.weights[0].shape == (7, 2)
    assert not tap.weights[0].any()
    assert tap.hashed.keys() == {"layer.virtual_A"}


@pytest.mark.parametrize("make", [tiny_base, tiny_adapter])
def test_layers_are_seen_in_one_forward_pass(make):
    found = layers_of(make("llama"))
    layers = {layer.target: layer for layer in found if layer.serves}
    assert len(found) == len(layers)
    assert not [name for name in layers if name.startswith("score")]
    assert len(layers) == 2 * 7
    one = "model.layers.0"
    query, value, output = (layers[f"{one}.self_attn.{name}"] for name in ("q_proj", "v_proj", "o_proj"))
    assert (query.d_in, query.d_out) == (16, 16)
    assert query.input_number == value.input_number != output.input_number
    up, gate = layers[f"{one}.mlp.up_proj"], layers[f"{one}.mlp.gate_proj"]
    assert up.input_number == gate.input_number not in (query.input_number, output.input_number)


def test_a_layer_that_is_called_twice_or_never_does_not_serve():
    model = tiny_base("llama")
    model.model.layers[0].self_attn.k_proj = model.model.layers[0].self_attn.v_proj
    model.extra = nn.Linear(16, 16)
    layers = {layer.name: layer for layer in layers_of(model)}
    assert not layers["extra"].serves
    assert not layers["model.layers.0.self_attn.k_proj"].serves
    assert layers["model.layers.0.self_attn.q_proj"].serves
    with pytest.raises(InputError, match="that a pass does not call once on its tokens: extra"):
        chosen_layers(model, list(layers.values()), VirtualOptions(2, ["extra", "q_proj"]), None)


def test_auto_takes_the_last_layers_that_fit(caplog):
    model = tiny_base("llama")
    layers = layers_of(model)
    options = VirtualOptions(2)
    every = chosen_layers(model, layers, options, None)
    assert every == layers
    of_a_block = sum(2 * layer.d_out for layer in layers if ".layers.1." in layer.name)
    with caplog.at_level("INFO", "bayesrm_fast"):
        last = chosen_layers(model, layers, options, of_a_block)
    assert [layer.name for layer in last] == [layer.name for layer in layers if ".layers.1." in layer.name]
    assert "on the last 1 of the model's 2 layers alone" in caplog.text
    with pytest.raises(InputError, match="not even the last layer's virtual adapters of rank 2 fit"):
        chosen_layers(model, layers, options, of_a_block - 1)
    with pytest.raises(InputError, match="no linear layer in the model's layers"):
        chosen_layers(nn.Linear(2, 2), [], options, None)


def test_targets_that_mean_no_layer_are_told_some_that_there_are():
    model = tiny_base("llama")
    with pytest.raises(InputError, match=r"match no linear layer; there are model\.layers\.0\.self_attn\.q_proj, "):
        chosen_layers(model, layers_of(model), VirtualOptions(2, ["query"]), None)


def test_the_input_of_a_call_without_positional_arguments_is_not_kept():
    kept = []
    hook = keeping_input(kept.append)
    hook(nn.Identity(), ())
    hook(nn.Identity(), (1, 2))
    assert kept == [1]
