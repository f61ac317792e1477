"""Which implementation serves a call: each backend says yes, or no and why.

`auto` takes the first that serves: for CPU tensors cpp, then reference. The environment variable `BAYESRM_BACKEND` and
the context manager `use_backend` force one; a forced backend that cannot serve raises and says why.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from torch import Tensor

import bayesrm_fast.ops.cpp as cpp
import bayesrm_fast.ops.reference as reference

OPERATIONS = ("kron_variance", "kron_project", "segment_outer", "second_moment")
BACKENDS: dict[str, ModuleType] = {"cpp": cpp, "reference": reference}
"""In the order of preference. Each has a function for every operation that it can serve, `unavailable()` and
`refuses(operation, tensors)`, which give a reason or None."""

_default = os.environ.get("BAYESRM_BACKEND", "auto")
_forced: ContextVar[str] = ContextVar("backend", default=_default)
_told = False


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend, by its name in `BACKENDS`, or `auto`, within a block.

    Raises:
        ValueError: an unknown name.
    """
    _check_name(name)
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(operation: str, tensors: tuple[Tensor, ...]) -> str:
    """Name of the backend that serves a call.

    Raises:
        ValueError: a forced backend that is unknown or cannot serve the call.
    """
    forced = _forced.get()
    if forced != "auto":
        _check_name(forced)
        reason = refusal(forced, operation, tensors)
        if reason is not None:
            raise ValueError(f"the backend {forced} cannot serve {operation}: {reason}")
        return forced
    chosen = next(name for name in BACKENDS if refusal(name, operation, tensors) is None)
    if chosen == "reference" and tensors[0].device.type == "cpu":
        _tell_once()
    return chosen


def refusal(name: str, operation: str, tensors: tuple[Tensor, ...]) -> str | None:
    """Why a backend does not serve a call; None where it does."""
    backend = BACKENDS[name]
    reason: str | None = backend.unavailable() or backend.refuses(operation, tensors)
    return reason


def serve(operation: str, *arguments: Any) -> Any:
    """Run an operation whose arguments have been checked."""
    tensors = tuple(argument for argument in arguments if isinstance(argument, Tensor))
    return getattr(BACKENDS[choose(operation, tensors)], operation)(*arguments)


def _check_name(name: str) -> None:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"there is no backend {name!r}; there are auto, {', '.join(BACKENDS)}")


def _tell_once() -> None:
    global _told
    reason = cpp.unavailable()
    if reason is not None and not _told:
        _told = True
        warnings.warn(f"the operations run in plain torch, not in C++: {reason}", stacklevel=2)
