"""Batches that do not fit in memory."""

import warnings

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.model.forward import Forward
from bayesrm_fast.model.token_budget import MOST_BATCH_TOKENS, TokenBudget, is_out_of_memory, tokens_that_fit

CANDIDATES = [{"prompt": words(3, 1), "responses": [words(2 + i % 6, i) for i in range(20)]}]
TEXTS = ([words(3, 1)] * 20, CANDIDATES[0]["responses"])


@pytest.fixture
def small_memory(monkeypatch):
    """A device on which no more than `tokens` fit, unless layers are run again in the backward pass."""
    limit = {"tokens": 10**9, "refused": 0}
    forward = Forward.__call__

    def limited(self, batch):
        checkpoints = any(getattr(m, "gradient_checkpointing", False) and m.training for m in self.model.modules())
        if batch.input_ids.numel() > limit["tokens"] and not checkpoints:
            limit["refused"] += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(self, batch)

    monkeypatch.setattr(Forward, "__call__", limited)
    return limit


def model():
    return BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))


def told(record):
    return [str(w.message) for w in record if "did not fit" in str(w.message)]


def test_smaller_batches_give_the_same_and_it_is_said_once(small_memory):
    rm = model().fit(tiny_pairs(), rank=4)
    expected, best = rm.score(*TEXTS), rm.best_of_each(CANDIDATES)[0]
    small_memory["tokens"] = 20
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        found, again = rm.score(*TEXTS), rm.best_of_each(CANDIDATES)[0]
    assert small_memory["refused"] > 1
    assert len(told(record)) == 1
    assert rm.passes().budget.batch_tokens <= 200
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-4, atol=0)
    assert again.index == best.index


def test_a_fit_starts_again_and_counts_nothing_twice(small_memory):
    expected = model().fit(tiny_pairs(), rank=4, prior_precision=1.0).score(*TEXTS)
    rm = model()
    rm.shortcuts  # noqa: B018  (tried before memory is short)
    small_memory["tokens"] = 60
    with pytest.warns(UserWarning, match="did not fit"):
        rm.fit(tiny_pairs(), rank=4, prior_precision=1.0)
    small_memory["tokens"] = 10**9
    torch.testing.assert_close(rm.score(*TEXTS).variance, expected.variance, rtol=1e-4, atol=0)


def test_one_row_that_does_not_fit_is_run_with_checkpoints(small_memory):
    rm = model().fit(tiny_pairs(), rank=4)
    expected = rm.score(*TEXTS)
    small_memory["tokens"] = 1
    with pytest.warns(UserWarning, match="did not fit"):
        found = rm.score(*TEXTS)
    assert rm.passes().budget.checkpoints
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-4, atol=0)
    layers = rm.model.get_base_model().model.layers
    assert not any("gradient_checkpointing" in vars(layer) and layer.gradient_checkpointing for layer in layers)


def test_where_nothing_is_left_to_give_up_the_error_is_the_devices(small_memory):
    rm = model().fit(tiny_pairs(), rank=4)
    small_memory["tokens"] = 1
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="did not fit"):
        rm.best_of_each(CANDIDATES)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_the_budget_follows_from_two_trials():
    def peak_bytes(tokens):
        return 1000 + 50 * tokens

    assert tokens_that_fit(peak_bytes, 100_000, 16) == int((0.7 * 100_000 - 1000) / 50)
    assert tokens_that_fit(peak_bytes, 10, 16) == 16
    assert tokens_that_fit(peak_bytes, 10**12, 16) == MOST_BATCH_TOKENS


def test_a_budget_shrinks_to_one_row_and_then_to_checkpoints():
    budget = TokenBudget(110)
    with pytest.warns(UserWarning, match="batches of 55 tokens"):
        budget.shrink(MemoryError(), 3, 120, has_backward=True)
    budget.shrink(MemoryError(), 1, 50, has_backward=True)
    assert budget == TokenBudget(55, checkpoints=True, _told=True)
    with pytest.raises(MemoryError):
        budget.shrink(MemoryError(), 1, 50, has_backward=True)
