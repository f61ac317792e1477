"""What is answered where a request is not served: one sentence, and no text of the request."""

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request

from bayesrm_fast.errors import InputError, shortened
from bayesrm_fast.serve.engine import EngineClosed, QueueFull

logger = logging.getLogger(__name__)

LONGEST_MESSAGE = 400
"""Characters of an error's sentence."""

MOST_PROBLEMS = 3
"""Fields that one sentence names."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="One sentence that names the field, and what was expected.")
    type: str = Field(description="The name of the status.", examples=["unprocessable_entity"])
    code: int = Field(description="The status.", examples=[422])


class ErrorAnswer(BaseModel):
    """The body of every answer that is not 200."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that is answered with an error of this status."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An answer with an error."""
    detail = ErrorDetail(message=shortened(message, LONGEST_MESSAGE), type=HTTPStatus(status).name.lower(), code=status)
    return JSONResponse(ErrorAnswer(error=detail).model_dump(), status, headers)


def busy(message: str, retry_after: float) -> ApiError:
    """503 that says after how many seconds to try again."""
    return ApiError(503, message, {"Retry-After": str(max(1, math.ceil(retry_after)))})


_MEANINGS = {
    400: "The body is no valid JSON in UTF-8, is nested too deeply, or holds NaN or a whole number above 2⁶³ − 1.",
    401: "The bearer token is missing or wrong.",
    404: "There is no such model; the message names those that there are.",
    408: "The body did not arrive in time.",
    413: "The body is larger than the server takes.",
    422: "A field is missing or cannot be served; the message names it.",
    500: "A fault of the server; its log has the request's id.",
    503: "The queue is full, or the server is shutting down. `Retry-After` has the seconds to wait.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route for OpenAPI."""
    return {status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in statuses}


OF_A_GET = documented(401)
OF_A_POST = documented(400, 401, 404, 408, 413, 422, 503)


def answer_errors(app: FastAPI) -> None:
    """Have an app answer its errors in this form."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return refusal(error.status, str(error), error.headers)

    @app.exception_handler(InputError)
    async def input_error(_: Request, error: InputError) -> JSONResponse:
        return refusal(422, str(error))

    @app.exception_handler(QueueFull)
    async def queue_full(_: Request, error: QueueFull) -> JSONResponse:
        full = busy(f"the queue is full: try again in {math.ceil(error.retry_after)} s", error.retry_after)
        return refusal(full.status, str(full), full.headers)

    @app.exception_handler(EngineClosed)
    async def closed(_: Request, error: EngineClosed) -> JSONResponse:
        if error.__cause__ is not None:
            logger.error("an engine has failed", exc_info=error.__cause__)
        down = busy("the server is shutting down, or a model of it has failed", 5)
        return refusal(down.status, str(down), down.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return refusal(422, _sentence(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return refusal(error.status_code, str(error.detail), error.headers)


def _sentence(problems: Sequence[Any]) -> str:
    """Which fields are wrong, and what is expected there."""
    told = list(dict.fromkeys(f"{_place(one['loc'])}: {one['msg'].removeprefix('Value error, ')}" for one in problems))
    more = f"; and {len(told) - MOST_PROBLEMS} more" if len(told) > MOST_PROBLEMS else ""
    return "; ".join(told[:MOST_PROBLEMS]) + more


def _place(location: Sequence[str | int]) -> str:
    """`responses[0].role`: the fields and positions, without the forms among which pydantic has looked."""
    shown = ""
    for part in location[1:] if len(location) > 1 else location:
        if isinstance(part, int):
            shown += f"[{part}]"
        elif part.isidentifier() and part not in _FORMS:
            shown += ("." if shown else "") + shortened(part)
    return shown or shortened(str(location[-1]))


_FORMS = ("str", "float", "int", "bool")
"""What pydantic names a scalar member of a union by."""
