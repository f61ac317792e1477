"""A model whose layers are on several devices: on one GPU and, as another device, the host."""

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use here"),
]

TEXTS = [words(3, 1)] * 4, [words(5, i) for i in range(4)]


def divided(model):
    """The last layer, and what comes after it, on the host."""
    inner = getattr(model, "get_base_model", lambda: model)()
    model.cuda()
    for part in (inner.model.layers[1], inner.model.norm, inner.score):
        add_hook_to_module(part, AlignDevicesHook("cpu", place_submodules=True))
    return model


@pytest.mark.parametrize("structure", ["kfac", "ekfac", "ggn"])
@pytest.mark.parametrize("virtual_rank", [None, 2])
def test_layers_on_several_devices_give_the_posterior_that_they_give_on_one(structure, virtual_rank):
    make = tiny_adapter if virtual_rank is None else tiny_base

    def fitted(model):
        rm = BayesianRewardModel(model, tiny_tokenizer("llama"), virtual_rank=virtual_rank, max_batch_tokens=512)
        return rm.fit(tiny_pairs(9), structure=structure, rank=4, prior_precision="margins", include_head=True)

    expected, found = fitted(make("llama")), fitted(divided(make("llama")))
    assert {tensor.device.type for tensor in found.posterior.tensors().values()} == {"cuda"}
    for call in (lambda rm: rm.score(*TEXTS).variance, lambda rm: rm.covariance(TEXTS[0][0], TEXTS[1]).covariance):
        torch.testing.assert_close(call(found).cpu(), call(expected), rtol=1e-3, atol=1e-5)
