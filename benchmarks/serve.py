"""The server under load, beside offline scoring and beside transformers behind FastAPI; all on one machine.

    python -m benchmarks.serve [--output benchmarks/results/serve.json]    # about eleven minutes on two cores
    python -m benchmarks.serve --quick                                     # a minute; shows that everything runs

MiniLM with LoRA, made texts of ragged lengths, a bounded client on loopback in this process, which takes processor time
from the server. Throughput is in rows a second; rounds take turns, and a number is their median. Half and twice the
load are of the throughput that was measured just before, in requests that come at random times, whatever became of
earlier ones. At twice the load the queue is kept short, so that its refusals are seen.
"""

import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer

from bayesrm_fast import BayesianRewardModel
from benchmarks.engine import IN_FLIGHT, model, text
from benchmarks.machine import describe
from benchmarks.timing import in_turns

SHORT_QUEUE = 8_192
"""Tokens of the queue at twice the load: some seconds of work."""

SPELLS = 3
"""At twice the load, one after the other: memory that grows in the first alone is no leak."""

Json = dict[str, Any]
Request = tuple[str, Json]


@dataclass(frozen=True)
class Scale:
    """How large a run is.

    Attributes:
        prompts, responses: of the texts.
        rounds: of every throughput.
        seconds: of half and of twice the load.
    """

    prompts: int = 32
    responses: int = 8
    rounds: int = 5
    seconds: float = 30.0


QUICK = Scale(prompts=4, responses=4, rounds=1, seconds=2.0)


@contextmanager
def running(command: list[str], port: int) -> Iterator[tuple[str, psutil.Process]]:
    """A server's URL once it is healthy, and its process."""
    process = subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None:
                raise RuntimeError(f"{command} has ended with {process.returncode}")
            time.sleep(0.2)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Load:
    """A client that counts: statuses, and the seconds of every answer of 200."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_connections=IN_FLIGHT)
        self.http = httpx.AsyncClient(base_url=url, timeout=180, limits=limits)
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []

    async def ask(self, request: Request) -> None:
        """One request."""
        path, body = request
        start = time.perf_counter()
        try:
            status = (await self.http.post(path, json=body)).status_code
        except httpx.HTTPError as error:
            self.statuses[type(error).__name__] += 1
            return
        self.statuses[str(status)] += 1
        if status == 200:
            self.seconds.append(time.perf_counter() - start)

    async def all_at_once(self, requests: list[Request]) -> None:
        """All requests, at most `IN_FLIGHT` of them on their way."""
        room = asyncio.Semaphore(IN_FLIGHT)

        async def one(request: Request) -> None:
            async with room:
                await self.ask(request)

        await asyncio.gather(*map(one, requests))

    async def at_a_rate(self, requests: list[Request], rate: float, seconds: float) -> None:
        """Requests at random times, `rate` a second, whatever becomes of those before."""
        lot, tasks, end = random.Random(0), [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            tasks.append(asyncio.create_task(self.ask(lot.choice(requests))))
            await asyncio.sleep(lot.expovariate(rate))
        await asyncio.gather(*tasks)

    def told(self) -> Json:
        """Statuses, and latencies in seconds of the answers of 200."""
        cuts = statistics.quantiles(self.seconds, n=100) if len(self.seconds) > 1 else []
        return {"statuses": dict(self.statuses), **{f"p{q}": cuts[q - 1] for q in (50, 95, 99) if cuts}}


def loaded(url: str, work: Callable[[Load], Awaitable[None]]) -> Json:
    """What a client tells of its work."""

    async def main() -> Json:
        load = Load(url)
        async with load.http:
            await work(load)
            return load.told()

    return asyncio.run(main())


def run(scale: Scale, folder: Path) -> Json:
    """All figures."""
    rm, lot = model(), random.Random(0)
    rm.save_pretrained(folder)
    rm = BayesianRewardModel.from_pretrained(folder, device="cpu")
    sets = [(text(lot, 60), [text(lot, 120) for _ in range(scale.responses)]) for _ in range(scale.prompts)]
    rows = [(prompt, response) for prompt, responses in sets for response in responses]
    by_prompt: list[Request] = [("/v1/rewards", {"prompt": prompt, "responses": own}) for prompt, own in sets]
    by_sample: list[Request] = [("/get_reward", {"query": [" ".join(row)]}) for row in rows]
    alone: list[Request] = [("/get_reward", {**body, "form": "rewards"}) for _, body in by_sample]
    port, plain_port = free_port(), free_port()

    def offline() -> None:
        rm.score([prompt for prompt, _ in rows], [response for _, response in rows])

    def at(url: str, requests: list[Request]) -> Callable[[], Json]:
        return lambda: loaded(url, lambda load: load.all_at_once(requests))

    with (
        running(["bayesrm_fast", "serve", str(folder), "--port", str(port)], port) as (url, _),
        running(["benchmarks.plain_server", str(folder), str(plain_port)], plain_port) as (plain, _),
    ):
        formulations = {
            "offline, with uncertainty": offline,
            "server, a prompt a request, with uncertainty": at(url, by_prompt),
            "server, a sample a request, with uncertainty": at(url, by_sample),
            "server, a sample a request, reward alone": at(url, alone),
            "plain FastAPI, a sample a request, reward alone": at(plain, by_sample),
        }
        timed = in_turns(formulations, scale.rounds)
        seconds = {name: one["seconds"] for name, one in timed.items()}
        requests_a_second = len(by_prompt) / seconds["server, a prompt a request, with uncertainty"]
        half = loaded(url, lambda load: load.at_a_rate(by_prompt, requests_a_second / 2, scale.seconds))
        in_flight = loaded(url, lambda load: load.all_at_once(by_sample))
    command = ["bayesrm_fast", "serve", str(folder), "--port", str(port)]
    with running([*command, "--max-queue-tokens", str(SHORT_QUEUE)], port) as (url, process):
        loaded(url, lambda load: load.all_at_once(by_prompt[:4]))
        mib, spells = [process.memory_info().rss >> 20], []
        for _ in range(SPELLS):
            spells.append(loaded(url, lambda load: load.at_a_rate(by_prompt, 2 * requests_a_second, scale.seconds)))
            mib.append(process.memory_info().rss >> 20)
    return {
        "machine": describe(),
        "rows": len(rows),
        "formulations": timed,
        "rows_a_second": {name: len(rows) / spent for name, spent in seconds.items()},
        "of_offline": {name: seconds["offline, with uncertainty"] / spent for name, spent in seconds.items()},
        "requests_a_second": requests_a_second,
        "half_load": half,
        f"{IN_FLIGHT}_samples_in_flight": in_flight,
        "twice_the_load": {"spells": spells, "max_queue_tokens": SHORT_QUEUE, "mib_before_and_after_each": mib},
    }


def main(
    quick: Annotated[bool, typer.Option(help="Small; shows that everything runs.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Of every throughput.")] = None,
    output: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Load a server and tell."""
    scale = QUICK if quick else Scale()
    with tempfile.TemporaryDirectory() as folder:
        found = run(replace(scale, rounds=rounds or scale.rounds), Path(folder) / "rm")
    found = {
        "command": f"python -m benchmarks.serve{' --quick' * quick}",
        "threads": os.environ.get("OMP_NUM_THREADS"),
        **found,
    }
    print(json.dumps(found, indent=1))
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
