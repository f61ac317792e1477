"""What tests of an engine share: a model that is held in its forward pass and fails when told to, and texts."""

import asyncio
import threading

import pytest
import torch
from tiny import WORDS, tiny_adapter, tiny_pairs, tiny_tokenizer, words
from tolerances import RELATIVE

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.model.forward import Forward

SECONDS = 30
"""Within which whatever is waited for has happened, or the test fails."""


class HeldModel:
    """Patches every model's forward pass.

    Attributes:
        batches: token ids of every batch that came.
        fault: called with a batch's token ids before the pass; may raise.
        poison: ids of tokens in whose rows the reward is NaN.
    """

    def __init__(self, monkeypatch):
        self.batches, self.fault, self.poison = [], lambda ids: None, []
        self._came, self._gate = threading.Semaphore(0), None
        forward = Forward.__call__

        def held(model, batch):
            self.batches.append(batch.input_ids.tolist())
            gate = self._gate
            self._came.release()
            assert gate is None or gate.acquire(timeout=SECONDS)
            self.fault(batch.input_ids)
            scalars = forward(model, batch)
            poisoned = torch.isin(batch.input_ids, torch.tensor(self.poison, dtype=torch.int64)).any(1)
            return torch.where(poisoned[:, None], torch.nan, scalars)

        monkeypatch.setattr(Forward, "__call__", held)

    def hold(self):
        """From the next batch on."""
        self._gate = threading.Semaphore(0)

    def let_one_go(self):
        """Of the batches that are held."""
        self._gate.release()

    def let_go(self):
        """All that is held, and what comes later."""
        if self._gate is not None:
            gate, self._gate = self._gate, None
            gate.release(100)

    def wait_for_batch(self):
        """Until one more batch has come."""
        assert self._came.acquire(timeout=SECONDS)

    def forget(self):
        """The batches that came so far."""
        self.batches.clear()
        while self._came.acquire(blocking=False):
            pass

    def rows(self):
        """Of every batch that came, how many."""
        return [len(batch) for batch in self.batches]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.let_go()


def fitted():
    return BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama")).fit(tiny_pairs(), rank=4)


POISON = WORDS[-1]


def text(count, seed):
    """Words without poison."""
    return words(count, seed).replace(POISON, WORDS[0])


PROMPTS = [text(3 + i % 4, 100 + i) for i in range(12)]


def responses(seed, count=4):
    return [text(1 + (seed + 5 * i) % 11, 20 * seed + i) for i in range(count)]


def run(main):
    return asyncio.run(asyncio.wait_for(main, 2 * SECONDS))


async def batch_came(held):
    await asyncio.to_thread(held.wait_for_batch)


async def until(condition):
    """Gives other tasks and threads their turns until it holds."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)


async def queued(scorer, count):
    """Until so many requests wait for the model."""
    await until(lambda: sum(bool(request.units) for request in list(scorer._worker.queue._open)) == count)


def assert_agree(found, expected):
    if isinstance(expected, torch.Tensor):
        if expected.dtype == torch.bool:
            assert torch.equal(found, expected)
            return
        # Means and baselines are sums that cancel: their error is of the size of the model's largest rewards.
        torch.testing.assert_close(found, expected, rtol=RELATIVE[torch.float32], atol=1e-4, equal_nan=True)
        return
    assert type(found) is type(expected)
    for name, value in vars(expected).items():
        if isinstance(value, torch.Tensor):
            assert_agree(getattr(found, name), value)
        elif isinstance(value, float):
            assert getattr(found, name) == pytest.approx(value, abs=1e-4)
        else:
            assert getattr(found, name) == value
