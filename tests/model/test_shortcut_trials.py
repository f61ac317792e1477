"""Every shortcut gives the plain path's numbers, and one that would not is not taken."""

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    DECODERS,
    tiny_adapter,
    tiny_base,
    tiny_pairs,
    tiny_step_model,
    tiny_token_classifier,
    tiny_tokenizer,
    words,
)
from tolerances import RELATIVE

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.model.shortcuts import Shortcuts
from bayesrm_fast.score.means import rewards_of

PROMPTS = [words(24, 1), words(30, 2)]
CANDIDATES = [
    {"prompt": prompt, "responses": [words(1 + (7 * j + i) % 9, 10 * i + j) for j in range(24)]}
    for i, prompt in enumerate(PROMPTS)
]


def fitted(architecture, model=None, **options):
    model = tiny_adapter(architecture, **options) if model is None else model
    return BayesianRewardModel(model, tiny_tokenizer(architecture)).fit(tiny_pairs(), rank=6, prior_precision=0.5)


def without_shortcuts(rm):
    plain = BayesianRewardModel(rm.model, rm.tokenizer)
    plain.posterior = rm.posterior
    plain._shortcuts = Shortcuts()
    return plain


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_means_variances_and_winners_are_those_of_the_plain_path(architecture):
    rm = fitted(architecture)
    plain = without_shortcuts(rm)
    if architecture in DECODERS:
        assert rm.shortcuts.no_mask
        assert rm.shortcuts.shared_prefix
        assert rm.shortcuts.scored_token == "last"
    expected = plain.best_of_each(CANDIDATES, k=0.3, relative=False, exhaustive=True)
    found = rm.best_of_each(CANDIDATES, k=0.3, relative=False, exhaustive=True)
    lazy = rm.best_of_each(CANDIDATES, k=0.3, relative=False)
    for one, other, third in zip(expected, found, lazy, strict=True):
        torch.testing.assert_close(other.mean, one.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other.variance, one.variance, rtol=RELATIVE[torch.float32], atol=0)
        assert one.index == other.index == third.index
        known = ~third.variance.isnan()
        assert int(known.sum()) == third.variances_computed
        torch.testing.assert_close(third.variance[known], one.variance[known], rtol=RELATIVE[torch.float32], atol=0)


@pytest.mark.parametrize("include_head", [False, True])
def test_eager_attention_and_the_head(include_head):
    base = tiny_base("llama", attn_implementation="eager")
    rm = BayesianRewardModel(tiny_adapter("llama", base=base), tiny_tokenizer("llama"))
    rm.fit(tiny_pairs(), rank=6, prior_precision=0.5, include_head=include_head)
    assert rm.shortcuts.scored_token == "last"
    texts = ([words(3, 1)] * 5, [words(2 + i, i) for i in range(5)])
    expected, found = without_shortcuts(rm).score(*texts), rm.score(*texts)
    torch.testing.assert_close(found.variance, expected.variance, rtol=RELATIVE[torch.float32], atol=0)


def test_rows_that_end_in_padding_tokens_are_scored_where_transformers_scores_them():
    rm = fitted("llama")
    rows = rm.tokenize([PROMPTS[0]] * 24, CANDIDATES[0]["responses"])
    ended = [type(row)([*row.input_ids, *[0] * (i % 3)], None, False) for i, row in enumerate(rows)]
    expected = rewards_of(without_shortcuts(rm).passes(), rows)
    torch.testing.assert_close(rewards_of(rm.passes(), ended), expected, rtol=1e-5, atol=1e-5)


def replaced(model, change):
    """The model with `change(inputs, outputs)` after every call of its base."""
    base = model.get_base_model()
    forward = base.forward
    base.forward = lambda *args, **kwargs: change(kwargs, forward(*args, **kwargs))
    return model


def nudge(outputs, by):
    outputs.logits = outputs.logits + by
    return outputs


def test_a_cache_that_is_not_exact_is_not_used():
    def change(inputs, outputs):
        return nudge(outputs, 1e-2) if inputs.get("past_key_values") is not None else outputs

    rm = fitted("llama", replaced(tiny_adapter("llama"), change))
    assert not rm.shortcuts.shared_prefix
    assert "differ" in dict(rm.shortcuts.reasons)["shared_prefix"]
    for found, expected in zip(
        rm.best_of_each(CANDIDATES), without_shortcuts(rm).best_of_each(CANDIDATES), strict=True
    ):
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-5, atol=1e-5)


def test_a_mask_that_matters_is_kept():
    def change(inputs, outputs):
        return nudge(outputs, 1e-2) if inputs.get("attention_mask") is None else outputs

    shortcuts = fitted("llama", replaced(tiny_adapter("llama"), change)).shortcuts
    assert not shortcuts.no_mask
    assert not fitted("bert").shortcuts.no_mask


def test_a_reward_that_reads_every_token_keeps_every_token():
    model = tiny_adapter("llama")
    head = model.get_base_model().score
    head.register_forward_hook(lambda module, args, output: output.cumsum(1))
    shortcuts = fitted("llama", model).shortcuts
    assert shortcuts.scored_token is None
    assert "last" in dict(shortcuts.reasons)["scored_token"]


def test_a_window_shorter_than_a_row_forbids_sharing():
    base = tiny_base("mistral", sliding_window=32)
    rm = BayesianRewardModel(tiny_adapter("mistral", base=base), tiny_tokenizer("mistral"))
    assert "slides over 32 tokens" in dict(rm.shortcuts.reasons)["shared_prefix"]


def test_what_only_a_long_beginning_shows_forbids_sharing():
    """A price of each token, less than bfloat16 rounds for the few of a short trial row."""

    def shortcuts(model, max_length):
        return BayesianRewardModel(model, tiny_tokenizer("llama"), max_length=max_length).shortcuts

    base = tiny_base("llama", max_position_embeddings=1024, dtype=torch.bfloat16)
    model = tiny_adapter("llama", base=base)
    assert shortcuts(model, 1024).shared_prefix
    priced = replaced(
        model, lambda inputs, outputs: nudge(outputs, -1e-3 * (inputs["input_ids"] != 0).sum(1, keepdim=True))
    )
    assert shortcuts(priced, 64).shared_prefix
    refused = shortcuts(priced, 1024)
    assert not refused.shared_prefix
    assert "rewards differ by" in refused.told()["beginnings that rows share"]


def test_an_encoder_does_not_share_in_bfloat16():
    base = tiny_token_classifier("bert", dtype=torch.bfloat16)
    model, tokenizer = tiny_step_model("bert", dtype=torch.bfloat16, base=base)
    shortcuts = BayesianRewardModel(model, tokenizer).shortcuts
    assert not shortcuts.no_mask
    assert not shortcuts.shared_prefix


def test_rewards_that_tell_nothing_allow_nothing():
    base = tiny_base("llama")
    torch.nn.init.zeros_(base.score.weight)
    shortcuts = BayesianRewardModel(tiny_adapter("llama", base=base), tiny_tokenizer("llama")).shortcuts
    assert (shortcuts.no_mask, shortcuts.scored_token, shortcuts.shared_prefix) == (False, None, False)
    assert all("rounding" in why for _, why in shortcuts.reasons)
