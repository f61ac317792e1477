"""What a request must be before any route sees it: allowed, bounded, and JSON that can be read."""

import asyncio
import hashlib
import hmac
import json
import math
import re
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bayesrm_fast.schema import LARGEST_INTEGER
from bayesrm_fast.serve.answers import ApiError, refusal
from bayesrm_fast.serve.options import ServerOptions

BODY_SECONDS = 30.0
"""In which a body must have arrived."""

OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json")
"""What is answered without a token: none of it tells of a model or of a text."""

_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def check_json(body: bytes, max_nesting: int) -> None:
    """Refuse a body that is no JSON, or that a tokenizer, a schema or an answer could trip over.

    Raises:
        ApiError: 400, with what is wrong and where, and nothing of what stands there.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not valid UTF-8: see byte {error.start}") from error
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=_constant)
    except RecursionError as error:
        raise ApiError(400, _too_deep(max_nesting)) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ApiError(400, f"the body is not valid JSON: {error.msg} at {where}") from error
    _check_nesting(value, max_nesting)
    if _ESCAPED_SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ApiError(400, "the body has a lone surrogate, which is not valid Unicode") from error


def _check_nesting(value: Any, max_nesting: int) -> None:
    level = [value]
    for _ in range(max_nesting + 1):
        level = [one for one in level if isinstance(one, dict | list)]
        if not level:
            return
        level = [below for one in level for below in (one.values() if isinstance(one, dict) else one)]
    raise ApiError(400, _too_deep(max_nesting))


def _too_deep(max_nesting: int) -> str:
    return f"the body is nested too deeply: at most {max_nesting} arrays or objects within each other are taken"


def _integer(digits: str) -> int:
    if len(digits) > len(str(LARGEST_INTEGER)) + 1 or abs(number := int(digits)) > LARGEST_INTEGER:
        raise ApiError(
            400, f"the body has a whole number of {len(digits)} digits, and at most {LARGEST_INTEGER} is taken"
        )
    return number


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ApiError(400, "the body has a number that is too large")
    return number


def _constant(name: str) -> float:
    raise ApiError(400, f"the body has {name}, which is no number of JSON")


class Limits:
    """ASGI middleware: request id, bearer token, a body that is whole and readable, and an end when the client leaves.

    Args:
        app: what it is around.
        options: the limits, and the token.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self.app = app
        self.options = options
        self._token = None if options.token is None else _digest(options.token.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        scope["record"].request_id = given.decode() if _ID.fullmatch(given) else uuid.uuid4().hex
        try:
            self._check_token(scope["path"], headers.get(b"authorization", b""))
            body = await self._body(headers, receive)
        except ApiError as error:
            await refusal(error.status, str(error), error.headers)(scope, receive, send)
            return
        if body is not None:
            await self._run(body, scope, receive, send)

    def _check_token(self, path: str, authorization: bytes) -> None:
        if self._token is None or path in OPEN_PATHS:
            return
        scheme, _, token = authorization.partition(b" ")
        # Of digests, so that neither the time nor a difference of lengths tells anything.
        if not hmac.compare_digest(_digest(token.strip()), self._token) or scheme.lower() != b"bearer":
            message = "this server wants a bearer token: send it as `Authorization: Bearer …`"
            raise ApiError(401, message, {"WWW-Authenticate": "Bearer"})

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The whole body, checked; None where the client has left."""
        longest = self.options.max_body_bytes
        told = headers.get(b"content-length", b"")
        parts, size, is_whole = [], int(told) if told.isdigit() and len(told) < 20 else 0, False
        if size > longest:
            raise _too_large(longest)
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while not is_whole:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    is_whole = not message.get("more_body", False)
                    if size > longest:
                        raise _too_large(longest)
        except TimeoutError as error:
            raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:g} s", _CLOSE) from error
        body = b"".join(parts)
        if body:
            check_json(body, self.options.max_nesting)
        return body

    async def _run(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app on a whole body, and cancel it when the client leaves: nobody waits for its rewards."""
        gone = asyncio.Event()
        is_given = False

        async def replayed() -> Message:
            nonlocal is_given
            if not is_given:
                is_given = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        running = asyncio.ensure_future(self.app(scope, replayed, send))
        watching = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
            gone.set()
            if running.done():
                await running
        finally:
            running.cancel()
            watching.cancel()
            await asyncio.gather(running, watching, return_exceptions=True)


_CLOSE = {"Connection": "close"}
"""What of the body has not been read must not be taken for the next request."""


def _too_large(longest: int) -> ApiError:
    return ApiError(413, f"the body is larger than the {longest} bytes that are taken", _CLOSE)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
