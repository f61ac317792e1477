"""Which implementation serves a call: each backend says yes, or no and why.

`auto` takes the first that serves: for CUDA tensors cuda, triton, reference; for CPU tensors cpu, reference. The
environment variable `BAYESRM_BACKEND` and the context manager `use_backend` force one; a forced backend that cannot
serve raises and says why.
"""

import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import bayesrm_fast.ops.cpu as cpu
import bayesrm_fast.ops.cuda as cuda
import bayesrm_fast.ops.reference as reference
import bayesrm_fast.ops.triton as triton

OPERATIONS = ("kron_variance", "kron_project", "ggn_project", "segment_outer")
BACKENDS: dict[str, ModuleType] = {"cpu": cpu, "cuda": cuda, "triton": triton, "reference": reference}
"""Each has `unavailable()` and `refuses(operation, tensors)`, which give a reason or None, and a module with a function
of the same name for every operation that it serves."""

PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
"""What `auto` asks, in this order, by the type of device; the reference alone on any other."""

_forced = os.environ.get("BAYESRM_BACKEND", "auto")
_told = False


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend, by its name in `BACKENDS`, or `auto`, within a block.

    It holds for the whole process: the consumers of a backward pass on a GPU run in autograd's own threads.

    Raises:
        ValueError: an unknown name.
    """
    global _forced
    _check_name(name)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def choose(operation: str, tensors: tuple[Tensor, ...]) -> str:
    """Name of the backend that serves a call.

    Raises:
        ValueError: a forced backend that is unknown or cannot serve the call.
    """
    if _forced != "auto":
        _check_name(_forced)
        reason = refusal(_forced, operation, tensors)
        if reason is not None:
            raise ValueError(f"the backend {_forced} cannot serve {operation}: {reason}")
        return _forced
    device = tensors[0].device.type
    preference = PREFERENCE.get(device, ("reference",))
    for name in preference:
        if refusal(name, operation, tensors) is None:
            break
    if name == "reference" and device == "cpu":
        _tell_once()
    return name


def refusal(name: str, operation: str, tensors: tuple[Tensor, ...]) -> str | None:
    """Why a backend does not serve a call; None where it does."""
    backend = BACKENDS[name]
    reason: str | None = backend.unavailable() or backend.refuses(operation, tensors)
    return reason


def describe_backends() -> dict[str, dict[str, str]]:
    """For every operation what each backend says: that it serves, or why it does not.

    The backends for CPU tensors are asked with float32, those for CUDA tensors, where there is a GPU, with bfloat16.
    """
    shapes = {(0, 1): torch.float32, (0, 8): torch.float32, (1,): torch.int64}
    on_cpu = tuple(torch.zeros(shape, dtype=dtype, device="cpu") for shape, dtype in shapes.items())
    on_gpu = on_cpu
    if torch.cuda.is_available():
        on_gpu = (on_cpu[0].bfloat16().cuda(), on_cpu[1].bfloat16().cuda(), on_cpu[2].cuda())
    tensors = {name: on_cpu if name in PREFERENCE["cpu"] else on_gpu for name in BACKENDS}
    return {
        operation: {name: refusal(name, operation, tensors[name]) or "serves" for name in BACKENDS}
        for operation in OPERATIONS
    }


def serve(operation: str, *tensors: Tensor) -> Any:
    """Run an operation whose arguments have been checked."""
    return _function(choose(operation, tensors), operation)(*tensors)


@cache
def _function(backend: str, operation: str) -> Callable[..., Any]:
    # Imported when first asked for: triton takes its time.
    module = importlib.import_module(f"{BACKENDS[backend].__name__}.{operation}")
    function: Callable[..., Any] = getattr(module, operation)
    return function


def _check_name(name: str) -> None:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"there is no backend {name!r}; there are auto, {', '.join(BACKENDS)}")


def _tell_once() -> None:
    global _told
    reason = cpu.unavailable()
    if reason is not None and not _told:
        _told = True
        warnings.warn(f"the operations run in plain torch, not in C++: {reason}", stacklevel=2)
