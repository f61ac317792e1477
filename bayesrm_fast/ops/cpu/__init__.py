"""The operations in C++, for CPU tensors of float32 and bfloat16; csrc/cpu has the kernels."""

import torch
from torch import Tensor

from bayesrm_fast.ops.cpu.binding import BASES_DTYPES, DTYPES, compiled, missing


def unavailable() -> str | None:
    """Why no call is served on this machine; None where calls are."""
    return missing


def refuses(operation: str, tensors: tuple[Tensor, ...]) -> str | None:
    """Why this call is not served; None where it is."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return "it serves CPU tensors"
    p, q, _, *constants = tensors
    for tensor in (p, q):
        if tensor.dtype not in DTYPES:
            return f"it serves float32 and bfloat16, not {tensor.dtype}"
    for constant in constants:
        if operation == "ggn_project" and constant.dtype not in BASES_DTYPES:
            return f"it reads bases in float32, bfloat16 and int8, not {constant.dtype}"
        if constant.dtype == torch.float64:
            return "it computes in float32, not float64"
    return None


def instruction_set() -> str:
    """The instruction set that was chosen for this processor."""
    name: str = compiled.instruction_set()
    return name
