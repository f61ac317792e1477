"""The server as an ASGI app: routes, drop-ins, health and metrics around the engines."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Literal

from fastapi import FastAPI, Response
from pydantic import BaseModel

from bayesrm_fast.serve import native, page, reference
from bayesrm_fast.serve.answers import OF_A_GET, answer_errors, busy, documented
from bayesrm_fast.serve.engine import AsyncScorer
from bayesrm_fast.serve.limits import Limits
from bayesrm_fast.serve.logs import RequestLog
from bayesrm_fast.serve.options import ServerOptions
from bayesrm_fast.serve.protocols import llamafactory, openrlhf, sglang, slime, vllm
from bayesrm_fast.serve.served import Served, ServedModels
from bayesrm_fast.versions import library_versions

logger = logging.getLogger(__name__)

PAGES = (page.router, reference.router)
DROP_INS = (openrlhf.router, vllm.router, sglang.router, slime.router, llamafactory.router)
ROUTERS = (*PAGES, native.router, *DROP_INS)

DESCRIPTION = """\
Rewards with their uncertainty. Every reward is the mean of a Gaussian posterior, and `std` its standard deviation.

The routes under *native* have all that is known of a prompt's responses. Those under *drop-in* answer in the form of
another program, for trainers and clients that speak it already; the one number of a sample that they return is its mean
less a `penalty` for its std. They wait where the queue is full, and native routes refuse at once with 503.
"""


class Health(BaseModel):
    """That the server scores."""

    status: Literal["ok"] = "ok"


def create_app(scorers: Mapping[str, AsyncScorer], options: ServerOptions | None = None) -> FastAPI:
    """A server's ASGI app; its lifespan starts the engines, warms them up and drains them.

    Args:
        scorers: by the names under which clients know their models; the first is asked where they name none.
        options: limits, the token, and what drop-ins return. Default: those of `ServerOptions`.

    Raises:
        InputError: no model.
    """
    options = options or ServerOptions()
    served = Served(scorers, options)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as engines:
            for scorer in served.scorers.values():
                await engines.enter_async_context(scorer)
            warming = asyncio.create_task(_warm_up(served))
            try:
                yield
            finally:
                served.is_warm = False
                warming.cancel()

    app = FastAPI(
        title="bayesrm_fast",
        version=library_versions()["bayesrm_fast"],
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.served = served
    # The last is the outermost: it gives every request the record that the limits and the routes write to.
    app.add_middleware(Limits, options=options)
    app.add_middleware(RequestLog, metrics=served.metrics)
    answer_errors(app)
    for router in ROUTERS:
        app.include_router(router)

    @app.get("/health", tags=["operation"], responses=documented(503))
    async def health(served: ServedModels) -> Health:
        """200 while every model scores; 503 before each has scored something, and after one has failed."""
        if not served.is_ready:
            raise busy("the models are warming up, or shutting down", 1)
        return Health()

    @app.get("/metrics", tags=["operation"], responses=OF_A_GET | _PLAIN, response_class=Response)
    async def metrics(served: ServedModels) -> Response:
        """Figures for Prometheus."""
        return Response(served.metrics.page(), media_type=_PROMETHEUS)

    return app


_PROMETHEUS = "text/plain; version=1.0.0; charset=utf-8"
_PLAIN: dict[int | str, dict[str, object]] = {200: {"content": {"text/plain": {}}, "description": "The figures."}}


async def _warm_up(served: Served) -> None:
    """Score once by every model, so that what is slow the first time is done."""
    try:
        for scorer in served.scorers.values():
            await scorer.score("a", ["b"])
    except Exception:
        logger.exception("a model does not score: the server stays unready")
        return
    served.is_warm = True
    logger.info("ready", extra={"fields": {"models": list(served.scorers)}})
