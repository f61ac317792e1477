"""A line of JSON for each request and event, without any text of a request."""

import json
import logging
import time
import traceback
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bayesrm_fast.serve.answers import refusal
from bayesrm_fast.serve.metrics import Metrics

logger = logging.getLogger(__name__)

CLIENT_CLOSED = 499
"""The status, in logs and metrics alone, of a request whose client went away; nginx's."""


class JsonLines(logging.Formatter):
    """A record as one line of JSON: what is given in `extra={"fields": …}` beside time, level and message.

    Of an exception its type and the places in the code are shown, and not its message, which may quote a request.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
            line["frames"] = [
                f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(record.exc_info[2])
            ]
        return json.dumps(line, ensure_ascii=True)


@dataclass
class RequestRecord:
    """What is logged of one request.

    Attributes:
        request_id: which the answer has in `X-Request-Id`.
        model: name of the model; empty where none was asked.
        rows, tokens: that were scored.
    """

    request_id: str = ""
    model: str = ""
    rows: int = 0
    tokens: int = 0


class RequestLog:
    """ASGI middleware: a record, a line and a measurement for each request; 500 without a traceback for a fault.

    Args:
        app: what it is around.
        metrics: that count the answers.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = scope["record"] = RequestRecord()
        status = 0
        start = time.monotonic()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", record.request_id.encode("latin-1")))
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception:
            logger.exception("a request failed", extra={"fields": {"request_id": record.request_id}})
            if status:
                raise
            await refusal(500, f"a fault of the server; its log has it as request {record.request_id}")(
                scope, receive, noting
            )
        finally:
            self._tell(scope, record, status or CLIENT_CLOSED, time.monotonic() - start)

    def _tell(self, scope: Scope, record: RequestRecord, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.answered(route, status, seconds)
        fields = {
            "request_id": record.request_id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 1),
            **({"model": record.model, "rows": record.rows, "tokens": record.tokens} if record.model else {}),
        }
        level = logging.WARNING if status >= 500 else logging.INFO
        logger.log(level, "request", extra={"fields": fields})
