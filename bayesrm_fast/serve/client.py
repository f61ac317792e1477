"""Clients of the server, for programs that have no model: the same scores as the model's own, and picklable."""

import asyncio
import json
import math
import os
import random
import ssl
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, Literal, TypeVar

import httpx
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.score.variances import RewardScores
from bayesrm_fast.select.choice import BestOfN
from bayesrm_fast.serve.reading import OF_ANOTHER, Json, ServerError, best_of, means_of, names_of, scores_of
from bayesrm_fast.text.records import Candidates, candidate_sets, checked_references, checked_rows
from bayesrm_fast.text.texts import Text, as_list, key_of

FIRST_WAIT = 0.25
LONGEST_WAIT = 30.0
"""Seconds between two tries, where the server does not say how many."""

MOST_AT_ONCE = 64
"""Requests of one call that are on their way together: the server puts them into shared batches."""

H = TypeVar("H", httpx.Client, httpx.AsyncClient)


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
        if not _is_of_a_server(self.url):
            raise InputError(f"url must be that of a server, such as http://127.0.0.1:8000, not {self.url!r}")
        if self.token is not None and (not self.token.isprintable() or not self.token.strip(" ") == self.token != ""):
            raise InputError("the token is empty, or has spaces or ends of lines around it")
        for name in ("timeout", "patience"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                raise InputError(f"{name} must be a finite number of seconds above 0, not {value!r}")

    def _made(self, kind: type[H]) -> H:
        """A client of httpx.

        Raises:
            InputError: a proxy in the environment that httpx cannot use.
        """
        headers = {} if self.token is None else {b"Authorization": f"Bearer {self.token}".encode()}
        limits = httpx.Limits(max_connections=MOST_AT_ONCE)
        try:
            return kind(base_url=self.url, headers=headers, timeout=self.timeout, limits=limits, verify=_tls())
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise InputError(f"a proxy of the environment (HTTP_PROXY, ALL_PROXY) cannot be used: {error}") from error

    def _asked(self, prompt: Text, responses: Sequence[Text], **further: Any) -> Json:
        named = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
        model = {} if self.model is None else {"model": self.model}
        return model | named | {"responses": list(responses)} | further

    def _rewards_asked(
        self, prompts: Sequence[Text], responses: Sequence[Text], relative_to: Any, variance: bool = True
    ) -> list[tuple[list[int], Json]]:
        """A request for each distinct prompt, with the places of its responses."""
        texts, answers = checked_rows(prompts, responses)
        is_each = relative_to is not None and not (isinstance(relative_to, str) and relative_to == "prompt")
        if is_each:
            relative_to = checked_references(relative_to, [f"reference {i + 1}" for i in range(len(texts))])
        places: dict[str, list[int]] = {}
        for i, text in enumerate(texts):
            places.setdefault(key_of(text), []).append(i)
        asked = []
        for own in places.values():
            relative = [relative_to[i] for i in own] if is_each else relative_to
            body = self._asked(texts[own[0]], [answers[i] for i in own], relative=relative, variance=variance)
            asked.append((own, body))
        return asked

    def _choice_asked(
        self, candidates: Candidates, rule: str | Mapping[str, Any], **further: Any
    ) -> tuple[Candidates, Json]:
        """The checked candidates, and the request."""
        if not isinstance(rule, str | Mapping):
            raise InputError("a server takes a rule by its name or its description (description_of(rule))")
        (one,) = candidate_sets([candidates])
        further |= {"log_probabilities": one.log_probabilities, "similarities": one.similarities}
        given = {name: value for name, value in further.items() if value is not None}
        return one, self._asked(one.prompt, one.responses, rule=rule, **given)


@dataclass
class _Tries:
    """The tries of one request, and the time between them."""

    address: _Address
    path: str
    began: float = field(default_factory=time.monotonic)
    count: int = 0

    def wait(self, outcome: httpx.Response | httpx.RequestError) -> float | None:
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
            if outcome.has_redirect_location:
                raise InputError(f"{told}: {message} to {outcome.headers['Location']}: give the url that it leads to")
            if 400 <= outcome.status_code < 500 and outcome.status_code not in (408, 429):
                raise InputError(f"{told}: {message}")
            if outcome.status_code == 500 and _is_the_servers(outcome):
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
    def _connections(self) -> dict[int, httpx.Client]:
        """By process: a forked child that took its parent's would take its answers too."""
        return {}

    @property
    def _http(self) -> httpx.Client:
        process = os.getpid()
        if process not in self._connections:
            self._connections[process] = self._made(httpx.Client)
        return self._connections[process]

    def __getstate__(self) -> Json:
        return {name: held for name, held in vars(self).items() if name != "_connections"}

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
        return scores_of(*self._answered(self._rewards_asked(prompts, responses, relative_to)))

    def rewards(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        """MAP rewards `[N]` by forward passes alone; raises what `score` does."""
        return means_of(*self._answered(self._rewards_asked(prompts, responses, None, variance=False)))

    def _answered(self, asked: list[tuple[list[int], Json]]) -> tuple[list[list[int]], list[Json]]:
        """Places of the responses, and the answers."""
        with ThreadPoolExecutor(min(len(asked), MOST_AT_ONCE)) as pool:
            answers = list(pool.map(partial(self._post, "/v1/rewards"), [body for _, body in asked]))
        return [own for own, _ in asked], answers

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
        candidates = Candidates(prompt, responses, log_probabilities, similarities)
        one, asked = self._choice_asked(candidates, rule, k=k, relative=relative)
        return best_of(self._post("/v1/best_of_n", asked), one.responses)

    def models(self) -> list[str]:
        """Names of the server's models, the one that is asked by default first; raises what `score` does."""
        return names_of(self._request("GET", "/v1/models"))

    def _post(self, path: str, body: Json) -> Json:
        return self._request("POST", path, body)

    def _request(self, method: str, path: str, body: Json | None = None) -> Json:
        tries = _Tries(self, path)
        while True:
            outcome: httpx.Response | httpx.RequestError
            try:
                outcome = self._http.request(method, path, **_written(body))
            except httpx.RequestError as error:
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
        return scores_of(*await self._answered(self._rewards_asked(prompts, responses, relative_to)))

    async def rewards(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        """See `Client.rewards`."""
        return means_of(*await self._answered(self._rewards_asked(prompts, responses, None, variance=False)))

    async def _answered(self, asked: list[tuple[list[int], Json]]) -> tuple[list[list[int]], list[Json]]:
        """Places of the responses, and the answers."""
        async with self._http() as http:
            answers = await asyncio.gather(*(self._request(http, "POST", "/v1/rewards", body) for _, body in asked))
        return [own for own, _ in asked], answers

    def _http(self) -> httpx.AsyncClient:
        return self._made(httpx.AsyncClient)

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
        candidates = Candidates(prompt, responses, log_probabilities, similarities)
        one, asked = self._choice_asked(candidates, rule, k=k, relative=relative)
        async with self._http() as http:
            return best_of(await self._request(http, "POST", "/v1/best_of_n", asked), one.responses)

    async def models(self) -> list[str]:
        """See `Client.models`."""
        async with self._http() as http:
            return names_of(await self._request(http, "GET", "/v1/models"))

    async def _request(self, http: httpx.AsyncClient, method: str, path: str, body: Json | None = None) -> Json:
        tries = _Tries(self, path)
        while True:
            outcome: httpx.Response | httpx.RequestError
            try:
                outcome = await http.request(method, path, **_written(body))
            except httpx.RequestError as error:
                outcome = error
            seconds = tries.wait(outcome)
            if seconds is None:
                return _json(outcome)
            await asyncio.sleep(seconds)


@cache
def _tls() -> ssl.SSLContext:
    """Made once: every asynchronous call has a client of its own, and reading the certificates takes a while."""
    return httpx.create_ssl_context()


def _is_of_a_server(url: Any) -> bool:
    try:
        parsed = httpx.URL(url)
    except (TypeError, httpx.InvalidURL):
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host) and not (parsed.query or parsed.fragment)


def _written(body: Json | None) -> Json:
    """Options of a request; raises InputError for what JSON does not hold."""
    if body is None:
        return {}
    try:
        content = json.dumps(body, ensure_ascii=False, allow_nan=False, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the request cannot be written as JSON: {error}") from error
    return {"content": content, "headers": {"Content-Type": "application/json"}}


def _plain(value: Any) -> Any:
    """An array, or a number out of one; a mapping that is no dict."""
    found = dict(value) if isinstance(value, Mapping) else as_list(value)
    if found is value:
        raise TypeError(f"it has a {type(value).__name__}")
    return found


def _json(answer: Any) -> Json:
    try:
        found = answer.json()
    except ValueError as error:
        raise ServerError(f"{answer.url}: the answer is no JSON{OF_ANOTHER}") from error
    if not isinstance(found, dict):
        raise ServerError(f"{answer.url}: the answer is no object{OF_ANOTHER}")
    return found


def _message(answer: httpx.Response) -> str:
    try:
        return f"{answer.status_code}, {answer.json()['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}"


def _is_the_servers(answer: httpx.Response) -> bool:
    """Whether it is an error that the server tells of, and not a proxy whose server has died meanwhile."""
    try:
        return "error" in answer.json()
    except (ValueError, TypeError):
        return False


def _retry_after(answer: httpx.Response) -> float | None:
    try:
        seconds = float(answer.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
