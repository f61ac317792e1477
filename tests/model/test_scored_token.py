"""The last layer at the scored token alone, and nothing of it left behind."""

import functools
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    DECODERS,
    tiny_adapter,
    tiny_base,
    tiny_pairs,
    tiny_token_classifier,
    tiny_tokenizer,
    words,
)
from tolerances import FLOAT32_INSIDE, RELATIVE
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.model.layers import last_layer
from bayesrm_fast.model.scored_token import PREFIX, attentions, feed_forward, is_separable, scored_token_alone
from bayesrm_fast.ops import segment_outer
from bayesrm_fast.text.batches import TokenBatch

IDS = torch.tensor([[1, 5, 9, 7, 8], [1, 6, 0, 0, 0], [1, 11, 12, 13, 0]])
BATCH = TokenBatch(IDS, (IDS != 0).long(), None, 0, (1.0,))


def fitted(architecture, model=None):
    model = tiny_adapter(architecture) if model is None else model
    return BayesianRewardModel(model, tiny_tokenizer(architecture)).fit(tiny_pairs(), rank=6, prior_precision=0.5)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "deberta-v2"])
def test_logits_are_those_of_every_token_and_the_feed_forward_block_sees_one_a_row(architecture):
    model = tiny_base(architecture, dtype=torch.float64)
    assert is_separable(model)
    with torch.no_grad():
        expected = model(**BATCH.model_inputs()).logits
        last = [module for module in model.modules() if isinstance(module, nn.ModuleList)][-1][-1]
        seen = []
        for module in last.modules():
            if isinstance(module, nn.Linear | Conv1D):
                module.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:-1])))
        token = "last" if architecture in DECODERS else "first"
        with scored_token_alone(model, BATCH, token):
            found = model(**BATCH.model_inputs()).logits
    torch.testing.assert_close(found, expected, rtol=FLOAT32_INSIDE, atol=FLOAT32_INSIDE)
    sees_one = (3, 1) in seen or architecture == "qwen3_moe"  # whose experts are no linear layers
    assert sees_one == (feed_forward(last) is not None) == (architecture != "opt")
    with torch.no_grad():
        assert torch.equal(model(**BATCH.model_inputs()).logits, expected)


def test_a_token_that_is_not_the_scored_one_gives_other_logits():
    """Otherwise the trials would have nothing to tell apart."""
    model = tiny_base("llama")
    with torch.no_grad(), scored_token_alone(model, BATCH, "first"):
        found = model(**BATCH.model_inputs()).logits
    assert not torch.allclose(found, model(**BATCH.model_inputs()).logits)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bert", "modernbert"])
def test_several_tokens_of_a_row_may_be_read(architecture):
    model, read_at = tiny_token_classifier(architecture, dtype=torch.float64), torch.tensor([[0, 2], [0, 1], [1, 3]])
    batch, rows = replace(BATCH, read_at=read_at), torch.arange(3)[:, None]
    with torch.no_grad():
        expected = model(**batch.model_inputs()).logits
        with scored_token_alone(model, batch, "read"):
            found = model(**batch.model_inputs()).logits
    torch.testing.assert_close(found[rows, read_at], expected[rows, read_at], rtol=FLOAT32_INSIDE, atol=FLOAT32_INSIDE)
    assert not torch.allclose(found[0, 1], expected[0, 1])


def test_a_model_whose_last_layer_is_not_known_is_not_separable():
    assert not is_separable(tiny_base("deberta-v2"))
    assert not is_separable(nn.Linear(2, 2))
    assert not is_separable(nn.Sequential(nn.ModuleList([nn.Linear(2, 2)])))
    eager = tiny_base("llama", attn_implementation="eager")
    assert attentions(eager.model.layers[-1]) == []
    assert is_separable(eager)  # its feed-forward block is


def test_nothing_is_left_behind_also_after_a_failure():
    class Fails:
        gradients_alone = True

        def consume(self, site, p, q, offsets):
            raise KeyboardInterrupt

    rm = fitted("bert")
    layer = rm.model.get_base_model().bert.encoder.layer[-1]
    config = layer.attention.self.config
    passes = rm.passes()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            passes.tapped.run(passes.collate(rm.tokenize(["a"], ["able"])), torch.ones_like, Fails)
        assert "feed_forward_chunk" not in vars(layer)
        assert layer.attention.self.config is config
        assert not [name for name in ALL_ATTENTION_FUNCTIONS if name.startswith(PREFIX)]


def test_two_models_in_two_threads_do_not_meet():
    models = [fitted("llama"), fitted("llama", tiny_adapter("llama", r=2))]
    texts = ([words(3, 1)] * 8, [words(2 + i, i) for i in range(8)])
    expected = [rm.score(*texts).variance for rm in models]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            found = list(pool.map(lambda rm: rm.score(*texts).variance, models))
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=RELATIVE[torch.float32], atol=0)


def patched_by_method(module, seen):
    """As Liger and verl patch models that are there already."""

    def forward(self, *args, **options):
        seen.append(type(self).__name__)
        return type(self).forward(self, *args, **options)

    module.forward = types.MethodType(forward, module)


def patched_by_partial(module, seen):
    """As accelerate hooks modules, and keeps what was there."""
    module._old_forward = module.forward

    def forward(module, *args, **options):
        seen.append(type(module).__name__)
        return module._old_forward(*args, **options)

    module.forward = functools.update_wrapper(functools.partial(forward, module), module._old_forward)


def patched_by_hooks(module, seen):
    """Twice what the block gives, by hooks on both sides of it."""
    module.register_forward_pre_hook(lambda module, args: seen.append(type(module).__name__))
    module.register_forward_hook(lambda module, args, output: 2 * output)


@pytest.mark.parametrize("patch", [patched_by_method, patched_by_partial, patched_by_hooks])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_what_others_have_put_on_a_module_is_called_and_stays(architecture, patch):
    model, seen = tiny_adapter(architecture, dtype=torch.float64), []
    last = last_layer(model)
    for module in (last, last.mlp if architecture == "llama" else last.output):
        if patch is not patched_by_hooks or module is not last:
            patch(module, seen)
    before = [dict(vars(module)) for module in model.modules()]
    row = torch.tensor([[1, 5, 9, 7]])
    rm = fitted(architecture, model)
    assert rm.shortcuts.scored_token is not None
    seen.clear()
    batch = TokenBatch(row, torch.ones_like(row), None, 0, (1.0,))
    tapped = rm.passes().tapped
    gradients = {}

    class Gradients:
        gradients_alone = True

        def consume(self, site, p, q, offsets):
            gradients[site.name] = segment_outer(p, q, offsets)[0]

    scalars, _ = tapped.run(batch, torch.ones_like, Gradients)
    assert len(seen) == (1 if patch is patched_by_hooks else 2)
    for module, attributes in zip(model.modules(), before, strict=True):
        assert vars(module).keys() == attributes.keys()
        assert vars(module).get("forward") is attributes.get("forward")
    reward = model(input_ids=row).logits[0, 0]
    torch.testing.assert_close(scalars[0, 0], reward.detach(), rtol=FLOAT32_INSIDE, atol=0)
    expected = torch.autograd.grad(reward, [weight.requires_grad_() for tap in rm.lora for weight in tap.weights])
    largest = max(gradient.abs().max() for gradient in expected)
    sites = [site.name for tap in rm.lora for site in tap.sites]
    for name, gradient in zip(sites, expected, strict=True):
        found = gradients[name].T if name.endswith("lora_B") else gradients[name]
        assert (found - gradient).abs().max() <= FLOAT32_INSIDE * largest, name
