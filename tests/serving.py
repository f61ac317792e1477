<<<<<<< HEAD
"""An engine whose rewards are known by heart, so that what a server makes of them can be compared to the byte."""

import asyncio
from types import SimpleNamespace

import torch

from bayesrm_fast.errors import InputError
from bayesrm_fast.score.joint import JointRewards
from bayesrm_fast.score.variances import RewardScores
from bayesrm_fast.select.choice import BestOfN
from bayesrm_fast.select.rules import KnownCandidates, StochasticRule, first_best
from bayesrm_fast.serve.engine import EngineClosed, EngineStats, QueueFull

STD = 0.5
LONGEST = 8
"""Words at which a row is cut."""


def reward(text):
    """An eighth of a text's characters, less two."""
    return len(text) / 8 - 2


def _plain(text):
    return text if isinstance(text, str) else " ".join(message["content"] or "" for message in text)


class FakeScorer:
    """See `bayesrm_fast.serve.engine.AsyncScorer`; a token is a word.

    Attributes:
        is_full: whether the queue is full, until `room` is set.
        held: what a request waits for once it is accepted; None for nothing.
        fault: an exception that every request meets.
        begun, cancelled: texts of requests that were accepted, and of those that were cancelled then.
    """

    def __init__(self):
        posterior = SimpleNamespace(record=SimpleNamespace(structure="ggn"), penalty=None)
        self.rm = SimpleNamespace(
            encoder=SimpleNamespace(
                max_length=LONGEST, encode=self._encode, encode_rendered=lambda texts, **_: self._rows(texts)
            ),
            fitted=posterior,
        )
        self.is_full = False
        self.is_closed = False
        self.room = asyncio.Event()
        self.held = None
        self.fault = None
        self.begun, self.cancelled = [], []

    def _encode(self, prompts, responses, where):
        return self._rows(f"{_plain(a)} {_plain(b)}" for a, b in zip(prompts, responses, strict=True))

    @staticmethod
    def _rows(texts):
        return [SimpleNamespace(length=min(len(text.split()), LONGEST)) for text in texts]

    @property
    def accepts(self):
        return not self.is_closed

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        await self.drain()

    async def drain(self):
        self.is_closed = True

    def stats(self):
        return EngineStats(120, 3, 7, 900, 0.25, 1, len(self.cancelled), 0, 0, 1.5)

    async def _accepted(self, texts, wait):
        if self.is_closed:
            raise EngineClosed("closed")
        if self.is_full and not wait:
            raise QueueFull("full", 2.5)
        if self.is_full:
            await self.room.wait()
        if self.fault is not None:
            raise self.fault
        self.begun.append(texts)
        try:
            if self.held is not None:
                await self.held.wait()
        except asyncio.CancelledError:
            self.cancelled.append(texts)
            raise
        for text in texts:
            if "\0" in text:
                raise InputError("response 1 contains a NUL character")

    def _scores(self, texts, variance=True):
        mean = torch.tensor([reward(text) for text in texts], dtype=torch.float64)
        spread = torch.full_like(mean, STD**2 if variance else torch.nan)
        return RewardScores(mean, spread, torch.tensor([len(text.split()) > LONGEST for text in texts]))

    async def score_text(self, texts, *, add_special_tokens=True, variance=True, wait=True):
        await self._accepted(texts, wait)
        return self._scores([f"<s>{text}" if add_special_tokens else text for text in texts], variance)

    async def rewards(self, prompt, responses, *, wait=True):
        return (await self.score(prompt, responses, wait=wait)).mean

    async def score(self, prompt, responses, *, relative_to=None, wait=True):
        texts = [f"{_plain(prompt)} {_plain(response)}" for response in responses]
        await self._accepted(texts, wait)
        found = self._scores(texts)
        if relative_to is None:
            return found
        baseline = torch.full_like(found.mean, found.mean.mean())
        return RewardScores(found.mean - baseline, found.variance, found.truncated, baseline)

    async def best_of_n(
        self,
        prompt,
        responses,
        rule="std",
        k=1.0,
        *,
        relative=True,
        log_probabilities=None,
        similarities=None,
        wait=True,
    ):
        texts = [f"{_plain(prompt)} {_plain(response)}" for response in responses]
        await self._accepted(texts, wait)
        found = self._scores(texts)
        variance = found.variance.clone()
        variance[1:] = torch.nan  # as of a lazy search
        joint = await self.covariance(prompt, responses)
        scores = rule.scores(KnownCandidates(found.mean, found.variance, joint))
        if not isinstance(rule, StochasticRule):
            scores = torch.where(variance.isnan(), torch.nan, scores)
        index = first_best(scores)
        return BestOfN(index, responses[index], scores, found.mean, variance, found.truncated, 1)

    async def covariance(self, prompt, responses, *, wait=True):
        texts = [f"{_plain(prompt)} {_plain(response)}" for response in responses]
        await self._accepted(texts, wait)
        found = self._scores(texts)
        return JointRewards(found.mean, torch.diag(found.variance), found.truncated)
=======
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
>>>>>>> 721ea915a15719e7b98be5a4918231377d0b9959
