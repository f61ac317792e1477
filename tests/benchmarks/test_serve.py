"""A client that counts what a server does under load."""

import asyncio

import httpx
import pytest

from benchmarks.engine import IN_FLIGHT
from benchmarks.serve import Load


@pytest.fixture
def load():
    """A client of a server that refuses every fourth request and drops every eighth."""
    now = {"count": 0, "here": 0, "most": 0}

    async def answer(request):
        now["count"] += 1
        number = now["count"]
        now["here"] += 1
        now["most"] = max(now["most"], now["here"])
        await asyncio.sleep(0)
        now["here"] -= 1
        if number % 8 == 0:
            raise httpx.ReadError("dropped")
        return httpx.Response(503 if number % 4 == 0 else 200)

    load = Load("http://server")
    load.http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(answer))
    load.now = now
    return load


def test_every_request_is_counted_once_and_no_more_are_on_their_way_than_said(load):
    asyncio.run(load.all_at_once([("/v1/rewards", {})] * (4 * IN_FLIGHT)))
    assert load.now["most"] == IN_FLIGHT
    told = load.told()
    assert told["statuses"] == {"200": 3 * IN_FLIGHT, "503": IN_FLIGHT // 2, "ReadError": IN_FLIGHT // 2}
    assert len(load.seconds) == 3 * IN_FLIGHT
    assert 0 <= told["p50"] <= told["p95"] <= told["p99"]


def test_requests_at_a_rate_are_not_held_back_by_those_before(load):
    asyncio.run(load.at_a_rate([("/v1/rewards", {})], rate=1000, seconds=0.1))
    assert sum(load.statuses.values()) == load.now["count"] > 10


def test_nothing_is_told_of_latencies_that_nobody_has():
    assert Load("http://server").told() == {"statuses": {}}
