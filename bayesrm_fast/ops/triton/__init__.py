"""The operations in Triton, for CUDA tensors; under `TRITON_INTERPRET=1` for CPU tensors, slowly, for tests."""

import importlib.util
import os

import torch
from torch import Tensor

from bayesrm_fast.ops.chips import chip_of
from bayesrm_fast.ops.triton.configs import tiles

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unavailable() -> str | None:
    """Why no call is served on this machine; None where calls are."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not (_INTERPRETED or torch.cuda.is_available()):
        return "there is no GPU that torch can use here"
    return None


def refuses(operation: str, tensors: tuple[Tensor, ...]) -> str | None:
    """Why this call is not served; None where it is."""
    device = "cpu" if _INTERPRETED else "cuda"
    if any(tensor.device.type != device for tensor in tensors):
        return f"it serves {device} tensors here"
    p, q, _, *constants = tensors
    for tensor in (p, q):
        if tensor.dtype not in _DTYPES:
            return f"it serves float32, bfloat16 and float16, not {tensor.dtype}"
    if p.shape[1] > 256:
        return f"it serves r up to 256, not {p.shape[1]}"
    if any(constant.dtype == torch.float64 for constant in constants):
        return "it computes in float32, not float64"
    if operation == "ggn_project":
        return None  # its blocks fit every chip
    k = constants[1].shape[1] if len(constants) > 1 else 0
    try:
        tiles(p.shape[1], q.shape[1], k, p.dtype, q.dtype, chip_of(q.device))
    except ValueError as error:
        return str(error)
    return None
