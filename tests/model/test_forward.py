"""A model as a function from batches to scalars."""

from types import SimpleNamespace

import pytest
import torch
from tiny import DECODERS, tiny_adapter, tiny_base
from tolerances import FLOAT32_INSIDE
from torch import nn

from bayesrm_fast.model.forward import Forward, text_config
from bayesrm_fast.model.readout import PooledReadout, TensorReadout
from bayesrm_fast.model.shortcuts import Shortcuts
from bayesrm_fast.text.batches import Collator
from bayesrm_fast.text.examples import TokenizedRow

ROWS = [[1, 5, 9, 7, 8, 10], [1, 5, 9, 6], [1, 5, 9, 12, 13]]


def batch_of(rows):
    return Collator(0, 44, torch.device("cpu"))([TokenizedRow(row, None, False) for row in rows])


def forward_of(model, **shortcuts):
    return Forward(model, PooledReadout(torch.ones(1)), Shortcuts(**shortcuts))


@pytest.mark.parametrize(
    ("held", "summed"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_scalars_are_detached_and_float32_at_least(held, summed):
    forward = forward_of(tiny_base("llama", dtype=held))
    scalars = forward.scalars(batch_of(ROWS))
    assert (forward.dtype, scalars.dtype, scalars.shape) == (summed, summed, (3, 1))
    assert not scalars.requires_grad


@pytest.mark.parametrize("architecture", DECODERS)
def test_what_follows_a_beginning_has_the_rewards_of_whole_rows(architecture):
    forward = forward_of(tiny_base(architecture, dtype=torch.float64))
    expected = forward.scalars(batch_of(ROWS))
    beginnings = forward.prefill(batch_of([[1, 5, 9], [1, 5]]))
    lengths, owners = torch.tensor([3, 2]), torch.tensor([0, 1, 0])
    rest = batch_of([row[lengths[owner] :] for row, owner in zip(ROWS, owners.tolist(), strict=True)])
    for _ in range(2):  # the beginnings' cache stays as it is
        found = forward.scalars_after(beginnings, lengths, owners, rest)
        torch.testing.assert_close(found, expected, rtol=FLOAT32_INSIDE, atol=FLOAT32_INSIDE)


def test_a_model_that_leaves_the_cache_empty_is_told():
    model = tiny_base("llama")
    model.forward = lambda **inputs: SimpleNamespace(past_key_values=[1])
    with pytest.raises(TypeError, match="keeps no keys and values in the DynamicCache"):
        forward_of(model).prefill(batch_of(ROWS))


def test_the_attention_mask_is_left_out_on_request():
    model, seen = tiny_base("llama"), []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    forward_of(model).scalars(batch_of(ROWS))
    forward_of(model, no_mask=True).scalars(batch_of(ROWS))
    assert seen == [{"input_ids", "attention_mask", "use_cache"}, {"input_ids", "use_cache"}]


@pytest.mark.parametrize("wrapped", [False, True])
def test_only_transformers_own_models_are_told_of_a_cache(wrapped):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_base("llama")
            self.config = self.inner.config

        def forward(self, input_ids, attention_mask):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask).logits

    model = Own()
    if wrapped:
        model = tiny_adapter("llama", base=model, task_type=None)
    assert Forward(model, TensorReadout()).scalars(batch_of(ROWS)).shape == (3, 1)
    encoder, seen = tiny_adapter("roberta"), []  # whose configuration has the option, or not
    encoder.get_base_model().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("use_cache")), with_kwargs=True
    )
    forward_of(encoder).scalars(batch_of(ROWS))
    assert seen in ([False], [None])


def test_a_model_runs_in_evaluation_mode_with_the_batchs_padding_token():
    model = tiny_base("llama", pad_token_id=None).train()
    seen = []
    model.register_forward_pre_hook(
        lambda module, args: seen.append((module.training, module.config.pad_token_id, torch.is_grad_enabled()))
    )
    forward_of(model).scalars(batch_of(ROWS))
    assert seen == [(False, 0, False)]
    assert (model.training, model.config.pad_token_id) == (True, None)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layers_run_again_in_the_backward_pass_on_request():
    model, calls = tiny_base("llama"), []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: output.requires_grad_())
    forward, batch = forward_of(model), batch_of(ROWS)
    for checkpoints, expected in ((False, 1), (True, 2)):
        calls.clear()
        with forward.prepared(batch, checkpoints=checkpoints):
            forward(batch).sum().backward()
        assert len(calls) == expected
    assert not any(getattr(layer, "gradient_checkpointing", False) for layer in model.model.layers)


def test_a_text_configuration_is_that_of_the_text_part_or_none():
    model = tiny_base("llama")
    assert text_config(model) is model.config
    assert text_config(nn.Linear(2, 2)) is None
    own = nn.Linear(2, 2)
    own.config = {"model_type": "custom"}  # as peft has it for a model without one
    assert text_config(own) is None
