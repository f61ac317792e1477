"""Clients of the server, for programs that have no model: the same scores as the model's own, and picklable."""

import asyncio
import math
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import httpx
import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.score.variances import RewardScores
from bayesrm_fast.select.choice import BestOfN
from bayesrm_fast.select.rules import Rule
from bayesrm_fast.text.texts import Text, checked_text, key_of

FIRST_WAIT = 0.25
LONGEST_WAIT = 30.0
"""Seconds between two tries, where the server does not say how many."""

MOST_AT_ONCE = 64
"""Requests of one call that are on their way together: the server puts them into shared batches."""

Json = dict[str, Any]


class ServerError(Exception):
    """The server has not answered in time, or not as one should."""


@dataclass(frozen=True)
class _Address:
    """Where a server is, and how long it is waited for.

    Attributes:
        url: of the server, such as `http://127.0.0.1:8000`.
        model: that is asked; None for the server's first.
        token: that it wants; None for none.
        timeout: seconds for one answer.
        patience: seconds for all tries of a request: while the server starts, is busy or is started anew.
    """

    url: str
    model: str | None = None
    token: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    patience: float = 300.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"url must be that of a server, such as http://127.0.0.1:8000, not {self.url!r}")
        for name in ("timeout", "patience"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                raise InputError(f"{name} must be a finite number of seconds above 0, not {value!r}")

    def _options(self) -> Json:
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        limits = httpx.Limits(max_connections=MOST_AT_ONCE)
        return {"base_url": self.url, "headers": headers, "timeout": self.timeout, "limits": limits}

    def _asked(self, prompt: Text, responses: Sequence[Text], **further: Any) -> Json:
        named = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
        model = {} if self.model is None else {"model": self.model}
        return model | named | {"responses": list(responses)} | further

    def _rewards_asked(
        self, prompts: Sequence[Text], responses: Sequence[Text], relative_to: Any
    ) -> list[tuple[list[int], Json]]:
        """A request for each distinct prompt, with the places of its responses."""
        if len(prompts) != len(responses):
            raise InputError(f"there are {len(prompts)} prompts but {len(responses)} responses")
        if not prompts:
            raise InputError("there is nothing to score: the list is empty")
        is_each = relative_to is not None and not isinstance(relative_to, str)
        if is_each and len(relative_to) != len(prompts):
            raise InputError(f"there are {len(prompts)} prompts but {len(relative_to)} references")
        texts = [checked_text(prompt, f"row {i + 1}: prompt") for i, prompt in enumerate(prompts)]
        answers = [checked_text(response, f"row {i + 1}: response") for i, response in enumerate(responses)]
        places: dict[str, list[int]] = {}
        for i, text in enumerate(texts):
            places.setdefault(key_of(text), []).append(i)
        asked = []
        for own in places.values():
            relative = [relative_to[i] for i in own] if is_each else relative_to
            body = self._asked(texts[own[0]], [answers[i] for i in own], relative=relative)
            asked.append((own, body))
        return asked

    def _choice_asked(
        self, prompt: Text, responses: Sequence[Text], rule: str | Mapping[str, Any] | Rule, **further: Any
    ) -> Json:
        if isinstance(rule, Rule):
            raise InputError("a server takes a rule by its name or its description (description_of(rule))")
        given = {name: value for name, value in further.items() if value is not None}
        return self._asked(prompt, responses, rule=rule if isinstance(rule, str) else dict(rule), **given)


@dataclass
class _Tries:
    """The tries of one request, and the time between them."""

    address: _Address
    path: str
    began: float = field(default_factory=time.monotonic)
    count: int = 0

    def wait(self, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds until the next try; None where the outcome is an answer.

        Raises:
            InputError: the request cannot be served, and never will be.
            ServerError: patience has ended, or the server has failed.
        """
        told = self.address.url + self.path
        if isinstance(outcome, httpx.Response):
            if outcome.is_success:
                return None
            message = _message(outcome)
            if 400 <= outcome.status_code < 500 and outcome.status_code not in (408, 429):
                raise InputError(f"{told}: {message}")
            if outcome.status_code == 500:
                raise ServerError(f"{told}: {message}")
            seconds = _retry_after(outcome)
        else:
            message = f"{type(outcome).__name__}: {outcome}"
            seconds = None
        # Not all at once, where many were refused together.
        if seconds is None:
            seconds = min(LONGEST_WAIT, FIRST_WAIT * 2**self.count)
        seconds *= 1 + random.random() / 4
        self.count += 1
        spent = time.monotonic() - self.began
        if spent + seconds > self.address.patience:
            raise ServerError(f"{told}: no answer in {self.count} tries and {spent:.0f} s; the last: {message}")
        return seconds


@dataclass(frozen=True)
class Client(_Address):
    """A server's model, with the scores of `BayesianRewardModel`; threads may share it, and it can be pickled.

    It tries again where the server starts, is busy or cannot be reached, as long as its `patience` lasts.

    Raises:
        InputError: no URL, or a time that is none.
    """

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(**self._options())

    def __getstate__(self) -> Json:
        return {name: held for name, held in vars(self).items() if name != "_http"}  # connections are a process's own

    def score(
        self,
        prompts: Sequence[Text],
        responses: Sequence[Text],
        *,
        relative_to: Literal["prompt"] | Sequence[Text] | None = None,
    ) -> RewardScores:
        """Reward and variance of `responses[i]` to `prompts[i]`, as `BayesianRewardModel.score` gives them.

        Args:
            prompts, responses: N of each.
            relative_to: "prompt", N references, or None.

        Raises:
            InputError: text that cannot be read, or what the server refuses.
            ServerError: no answer while the patience lasts, or a fault of the server.
        """
        asked = self._rewards_asked(prompts, responses, relative_to)
        with ThreadPoolExecutor(min(len(asked), MOST_AT_ONCE)) as pool:
            answers = list(pool.map(partial(self._post, "/v1/rewards"), [body for _, body in asked]))
        return _scores([own for own, _ in asked], answers)

    def rewards(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        """MAP rewards `[N]`; raises what `score` does."""
        return self.score(prompts, responses).mean

    def best_of_n(
        self,
        prompt: Text,
        responses: Sequence[Text],
        rule: str | Mapping[str, Any] = "std",
        k: float | None = None,
        *,
        relative: bool = True,
        log_probabilities: Sequence[float] | None = None,
        similarities: Sequence[Sequence[float]] | None = None,
    ) -> BestOfN:
        """The best response by a rule, as `BayesianRewardModel.best_of_n` gives it; raises what `score` does."""
        given = {"log_probabilities": log_probabilities, "similarities": similarities}
        asked = self._choice_asked(prompt, responses, rule, k=k, relative=relative, **given)
        return _best(self._post("/v1/best_of_n", asked), responses)

    def models(self) -> list[str]:
        """Names of the server's models, the one that is asked by default first; raises what `score` does."""
        return [one["id"] for one in self._request("GET", "/v1/models")["data"]]

    def _post(self, path: str, body: Json) -> Json:
        return self._request("POST", path, body)

    def _request(self, method: str, path: str, body: Json | None = None) -> Json:
        tries = _Tries(self, path)
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                outcome = error
            seconds = tries.wait(outcome)
            if seconds is None:
                return _json(outcome)
            time.sleep(seconds)


@dataclass(frozen=True)
class AsyncClient(_Address):
    """The same for asynchronous programs, each call in the event loop that awaits it.

    Raises:
        InputError: no URL, or a time that is none.
    """

    async def score(
        self,
        prompts: Sequence[Text],
        responses: Sequence[Text],
        *,
        relative_to: Literal["prompt"] | Sequence[Text] | None = None,
    ) -> RewardScores:
        """See `Client.score`."""
        asked = self._rewards_asked(prompts, responses, relative_to)
        async with httpx.AsyncClient(**self._options()) as http:
            answers = await asyncio.gather(*(self._request(http, "POST", "/v1/rewards", body) for _, body in asked))
        return _scores([own for own, _ in asked], answers)

    async def best_of_n(
        self,
        prompt: Text,
        responses: Sequence[Text],
        rule: str | Mapping[str, Any] = "std",
        k: float | None = None,
        *,
        relative: bool = True,
        log_probabilities: Sequence[float] | None = None,
        similarities: Sequence[Sequence[float]] | None = None,
    ) -> BestOfN:
        """See `Client.best_of_n`."""
        given = {"log_probabilities": log_probabilities, "similarities": similarities}
        asked = self._choice_asked(prompt, responses, rule, k=k, relative=relative, **given)
        async with httpx.AsyncClient(**self._options()) as http:
            return _best(await self._request(http, "POST", "/v1/best_of_n", asked), responses)

    async def models(self) -> list[str]:
        """See `Client.models`."""
        async with httpx.AsyncClient(**self._options()) as http:
            return [one["id"] for one in (await self._request(http, "GET", "/v1/models"))["data"]]

    async def _request(self, http: httpx.AsyncClient, method: str, path: str, body: Json | None = None) -> Json:
        tries = _Tries(self, path)
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await http.request(method, path, json=body)
            except httpx.TransportError as error:
                outcome = error
            seconds = tries.wait(outcome)
            if seconds is None:
                return _json(outcome)
            await asyncio.sleep(seconds)


def _json(answer: Any) -> Json:
    try:
        found = answer.json()
    except ValueError as error:
        raise ServerError(f"{answer.url}: the answer is no JSON; is this a server of bayesrm?") from error
    if not isinstance(found, dict):
        raise ServerError(f"{answer.url}: the answer is no object; is this a server of bayesrm?")
    return found


def _message(answer: httpx.Response) -> str:
    try:
        return f"{answer.status_code}, {answer.json()['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}"


def _retry_after(answer: httpx.Response) -> float | None:
    try:
        seconds = float(answer.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _scores(places: Sequence[Sequence[int]], answers: Sequence[Json]) -> RewardScores:
    """In the order of the rows."""
    order = torch.tensor([i for own in places for i in own], device="cpu").argsort()
    rows = [row for answer in answers for row in answer["rewards"]]
    mean, std = (_column([row[name] for row in rows])[order] for name in ("mean", "std"))
    truncated = torch.tensor([row["truncated"] for row in rows], dtype=torch.bool, device="cpu")[order]
    is_relative = rows[0]["baseline"] is not None
    baseline = _column([row["baseline"] for row in rows])[order] if is_relative else None
    return RewardScores(mean, std.square(), truncated, baseline)


def _best(answer: Json, responses: Sequence[Text]) -> BestOfN:
    rows, index = answer["candidates"], answer["index"]
    score, mean, std = (_column([row[name] for row in rows]) for name in ("score", "mean", "std"))
    truncated = torch.tensor([row["truncated"] for row in rows], dtype=torch.bool, device="cpu")
    computed = sum(row["std"] is not None for row in rows)
    return BestOfN(index, responses[index], score, mean, std.square(), truncated, computed, rows[0]["baseline"])


def _column(values: Sequence[float | None]) -> Tensor:  # shape: (N,)
    return torch.tensor([math.nan if one is None else one for one in values], dtype=torch.float64, device="cpu")
