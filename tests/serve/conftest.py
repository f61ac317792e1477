"""A server around an engine whose rewards are known, in this process."""

import contextlib

import httpx
import pytest
from serving import FakeScorer

from bayesrm_fast.serve.app import create_app


@contextlib.asynccontextmanager
async def running(scorers, options=None, **headers):
    """A client of an app whose lifespan runs, and which is warm."""
    app = create_app(scorers, options)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers) as client,
    ):
        while (await client.get("/health")).status_code != 200:
            pass
        yield client
