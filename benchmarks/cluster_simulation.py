"""Latency against load of a cluster of servers, simulated from what one server was measured to take.

    python -m benchmarks.cluster_simulation [--output benchmarks/results/cluster_simulation.json]    # some seconds

Nothing is measured here. Requests of one prompt and eight responses, with the lengths of `benchmarks.serve`, arrive at
random times, and a proxy sends each to a replica. A replica takes whole requests that wait, up to a batch's tokens, and
needs a time in proportion to their tokens: that of `results/serve.json`. All times go as that one: a replica that is
s times as fast has the same table, divided by s. What the simulation says of one replica at half and at twice its load
stands beside what `benchmarks.serve` has measured there.
"""

import heapq
import json
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bayesrm_fast.model.token_budget import BATCH_TOKENS
from benchmarks.serve import SHORT_QUEUE

RESULTS = Path(__file__).parent / "results"
RESPONSES, PROMPT_TOKENS, RESPONSE_TOKENS = 8, 60, 120
"""Of a request: as many responses, and at most as many tokens of each part, any number equally often."""

LOADS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95)
OVERLOADS = (1.2, 2.0)
"""Of one replica alone: queues of many fill up in longer than a run."""

REPLICAS = (1, 8, 64)
POLICIES = ("random", "least tokens")
SECONDS_OF_QUEUE = 60.0
"""Work that a replica lets wait, as docs/operations.md advises."""


@dataclass
class Replica:
    """A server with its queue.

    Attributes:
        seconds_per_token: of a batch.
        batch_tokens: most tokens of a batch of several requests.
        queue_tokens: most tokens that wait.
    """

    seconds_per_token: float
    batch_tokens: int
    queue_tokens: float
    waiting: deque[tuple[float, int]] = field(default_factory=deque)
    tokens_waiting: int = 0
    tokens_running: int = 0

    @property
    def tokens(self) -> int:
        """All that a new request waits for."""
        return self.tokens_waiting + self.tokens_running

    def accept(self, now: float, tokens: int) -> bool:
        """Queue a request, or refuse it where the queue is full."""
        if self.tokens_waiting + tokens > self.queue_tokens:
            return False
        self.waiting.append((now, tokens))
        self.tokens_waiting += tokens
        return True

    def next_batch(self) -> tuple[float, list[float]]:
        """Seconds of the next batch, and when its requests came."""
        arrivals: list[float] = []
        tokens = 0
        while self.waiting and (not arrivals or tokens + self.waiting[0][1] <= self.batch_tokens):
            arrived, own = self.waiting.popleft()
            arrivals.append(arrived)
            tokens += own
        self.tokens_waiting -= tokens
        self.tokens_running = tokens
        return tokens * self.seconds_per_token, arrivals


def request_tokens(lot: random.Random) -> int:
    """Tokens of all rows of a request."""
    prompt = lot.randint(1, PROMPT_TOKENS)
    return sum(prompt + lot.randint(1, RESPONSE_TOKENS) for _ in range(RESPONSES))


MEAN_TOKENS = RESPONSES * ((1 + PROMPT_TOKENS) / 2 + (1 + RESPONSE_TOKENS) / 2)


def simulate(
    replicas: list[Replica], policy: str, rate: float, requests: int, lot: random.Random
) -> tuple[list[float], int]:
    """Seconds that each request took from its arrival to its answer, and how many were refused.

    Args:
        replicas: with empty queues.
        policy: "random", or "least tokens" for the replica with the least to do.
        rate: requests a second, that come independently of each other.
        requests: how many come.
        lot: for what is random.
    """
    took: list[float] = []
    refused = 0
    running: list[tuple[float, int, list[float]]] = []  # when each batch ends, whose it is, and when its requests came

    def start(now: float, index: int) -> None:
        if replicas[index].waiting:
            seconds, arrivals = replicas[index].next_batch()
            heapq.heappush(running, (now + seconds, index, arrivals))

    def end() -> None:
        now, index, arrivals = heapq.heappop(running)
        took.extend(now - arrived for arrived in arrivals)
        replicas[index].tokens_running = 0
        start(now, index)

    now = 0.0
    for _ in range(requests):
        now += lot.expovariate(rate)
        while running and running[0][0] <= now:
            end()
        if policy == "random":
            index = lot.randrange(len(replicas))
        else:
            index = min(range(len(replicas)), key=lambda i: replicas[i].tokens)
        if not replicas[index].accept(now, request_tokens(lot)):
            refused += 1
        elif not replicas[index].tokens_running:
            start(now, index)
    while running:
        end()
    return took, refused


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50, p95 and p99."""
    ordered = sorted(seconds)
    return {f"p{p}": ordered[min(len(ordered) * p // 100, len(ordered) - 1)] for p in (50, 95, 99)}


def figures(
    seconds_per_token: float, count: int, policy: str, load: float, requests: int, queue_tokens: float
) -> dict[str, Any]:
    """What a cluster does under a load, as a share of what its replicas can do."""
    replicas = [Replica(seconds_per_token, BATCH_TOKENS["cpu"], queue_tokens) for _ in range(count)]
    rate = load * count / (MEAN_TOKENS * seconds_per_token)
    took, refused = simulate(replicas, policy, rate, requests, random.Random(0))
    return {**percentiles(took), "refused": refused / requests}


def beside_measured(served: dict[str, Any], seconds_per_token: float, requests: int) -> dict[str, Any]:
    """One replica, simulated and as `benchmarks.serve` measured it."""
    spells = served["twice_the_load"]["spells"]
    statuses: Counter[str] = sum((Counter(spell["statuses"]) for spell in spells), Counter())
    half = figures(seconds_per_token, 1, "random", 0.5, requests, float("inf"))
    twice = figures(seconds_per_token, 1, "random", 2.0, requests, SHORT_QUEUE)
    middle = {name: sum(spell[name] for spell in spells) / len(spells) for name in ("p50", "p95", "p99")}
    kept = ("p50", "p95", "p99")
    return {
        "half the load": {"simulated": half, "measured": {name: served["half_load"][name] for name in kept}},
        "twice the load, short queue": {
            "simulated": twice,
            "measured": {**middle, "refused": statuses["503"] / statuses.total()},
        },
    }


def main(
    quick: Annotated[bool, typer.Option(help="A second; shows that it runs.")] = False,
    output: Annotated[Path | None, typer.Option(help="File for the results.")] = None,
) -> None:
    """Simulate clusters of one to many replicas under growing loads."""
    requests = 300 if quick else 20_000
    served = json.loads((RESULTS / "serve.json").read_text())
    seconds_per_token = 1 / (served["requests_a_second"] * MEAN_TOKENS)
    rows = [
        {
            "replicas": count,
            "policy": policy,
            "load": load,
            **figures(seconds_per_token, count, policy, load, requests, SECONDS_OF_QUEUE / seconds_per_token),
        }
        for count in REPLICAS
        for policy in POLICIES[: 1 if count == 1 else None]
        for load in (*LOADS, *(OVERLOADS if count == 1 else ()))
    ]
    found = {
        "command": "python -m benchmarks.cluster_simulation",
        "simulated": True,
        "from": "results/serve.json",
        "seconds_per_token": seconds_per_token,
        "seconds_of_a_request_alone": MEAN_TOKENS * seconds_per_token,
        "requests": requests,
        "seconds_of_queue": SECONDS_OF_QUEUE,
        "one_replica": beside_measured(served, seconds_per_token, requests),
        "rows": rows,
    }
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n")
    table = Table(*("replicas", "policy", "load", "p50", "p95", "p99", "refused"), title="Seconds, simulated")
    for row in rows:
        shown = (f"{row[name]:.3g}" for name in ("p50", "p95", "p99", "refused"))
        table.add_row(str(row["replicas"]), row["policy"], f"{row['load']:g}", *shown)
    Console().print(table)
    Console().print(found["one_replica"])


if __name__ == "__main__":
    typer.run(main)
