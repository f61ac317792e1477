"""How many tokens fit."""

import psutil
import pytest
import torch

from bayesrm_fast.model.token_budget import (
    MOST_BATCH_TOKENS,
    TokenBudget,
    free_bytes,
    is_out_of_memory,
    release_memory,
    tokens_that_fit,
)


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
    assert budget == TokenBudget(55, checkpoints=True, shrinks=2, _told=True)
    with pytest.raises(MemoryError):
        budget.shrink(MemoryError(), 1, 50, has_backward=True)


def test_where_no_backward_pass_follows_checkpoints_do_not_help():
    budget = TokenBudget(100)
    error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError) as raised:
        budget.shrink(error, 1, 50, has_backward=False)
    assert raised.value is error
    assert budget == TokenBudget(100)
    with pytest.warns(UserWarning, match="batches of 1 tokens"):
        budget.shrink(error, 2, 1, has_backward=False)


def test_free_memory_is_the_hosts_or_what_the_device_says(monkeypatch):
    assert 0 < free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total
    emptied = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    assert free_bytes(torch.device("cuda", 0)) == 123
    release_memory(torch.device("cpu"))
    assert emptied == []
    release_memory(torch.device("cuda", 0))
    assert emptied == [1]
