"""An engine whose rewards are known by heart, so that what a server makes of them can be compared to the byte."""

import asyncio
from dataclasses import replace
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


def _tokenized(text, add_special_tokens):
    if isinstance(text, str):
        return f"<s>{text}" if add_special_tokens else text
    return " ".join(map(str, text))


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
        self.rm = SimpleNamespace(encoder=SimpleNamespace(max_length=LONGEST), fitted=posterior)
        self.begin()

    def begin(self):
        """As if nobody had asked anything."""
        self.is_full = False
        self.is_closed = False
        self.room = asyncio.Event()
        self.held = None
        self.fault = None
        self.begun, self.cancelled = [], []

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
            if isinstance(text, str) and "\0" in text:
                raise InputError("response 1 contains a NUL character")

    def _scores(self, texts, variance=True):
        mean = torch.tensor([reward(text) for text in texts], dtype=torch.float64)
        spread = torch.full_like(mean, STD**2 if variance else torch.nan)
        words = torch.tensor([len(text.split()) for text in texts], dtype=torch.int64)
        return RewardScores(mean, spread, words > LONGEST, words.clamp(max=LONGEST))

    async def score_text(self, texts, *, add_special_tokens=True, variance=True, wait=True):
        await self._accepted(texts, wait)
        return self._scores([_tokenized(text, add_special_tokens) for text in texts], variance)

    async def score(self, prompt, responses, *, relative_to=None, variance=True, wait=True):
        return await self.score_rows(
            [prompt] * len(responses), responses, relative_to=relative_to, variance=variance, wait=wait
        )

    async def score_rows(self, prompts, responses, *, relative_to=None, variance=True, wait=True):
        texts = [f"{_plain(prompt)} {_plain(response)}" for prompt, response in zip(prompts, responses, strict=True)]
        await self._accepted(texts, wait)
        found = self._scores(texts, variance)
        if relative_to is None:
            return found
        baseline = torch.full_like(found.mean, found.mean.mean())
        return replace(found, mean=found.mean - baseline, baseline=baseline)

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
        return BestOfN(index, responses[index], scores, found.mean, variance, found.truncated, found.tokens, 1)

    async def covariance(self, prompt, responses, *, wait=True):
        texts = [f"{_plain(prompt)} {_plain(response)}" for response in responses]
        await self._accepted(texts, wait)
        found = self._scores(texts)
        return JointRewards(found.mean, torch.diag(found.variance), found.truncated, found.tokens)
