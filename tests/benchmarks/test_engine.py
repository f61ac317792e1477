"""Requests in flight."""

import asyncio

from benchmarks.engine import IN_FLIGHT, in_flight


def test_all_requests_are_made_and_no_more_at_a_time_than_said():
    now, most, seconds = 0, 0, []

    async def request():
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    asyncio.run(in_flight([request] * (3 * IN_FLIGHT), seconds))
    assert most == IN_FLIGHT
    assert len(seconds) == 3 * IN_FLIGHT
