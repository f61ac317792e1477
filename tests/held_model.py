"""A model that a test holds in its forward pass, and that fails when told to."""

import threading

import torch

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
        self._came, self._may_go = threading.Semaphore(0), threading.Event()
        self._may_go.set()
        forward = Forward.__call__

        def held(model, batch):
            self.batches.append(batch.input_ids.tolist())
            self._came.release()
            assert self._may_go.wait(SECONDS)
            self.fault(batch.input_ids)
            scalars = forward(model, batch)
            poisoned = torch.isin(batch.input_ids, torch.tensor(self.poison, dtype=torch.int64)).any(1)
            return torch.where(poisoned[:, None], torch.nan, scalars)

        monkeypatch.setattr(Forward, "__call__", held)

    def hold(self):
        """From the next batch on."""
        self._may_go.clear()

    def let_go(self):
        """All that is held, and what comes later."""
        self._may_go.set()

    def wait_for_batch(self):
        """Until one more batch has come."""
        assert self._came.acquire(timeout=SECONDS)

    def rows(self):
        """Of every batch that came, how many."""
        return [len(batch) for batch in self.batches]
