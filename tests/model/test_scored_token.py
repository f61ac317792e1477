"""The last layer at the scored token alone, and nothing of it left behind."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import ARCHITECTURES, DECODERS, tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer, words
from tolerances import FLOAT32_INSIDE, RELATIVE
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.model.scored_token import PREFIX, attentions, feed_forward, is_separable, scored_token_alone
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
