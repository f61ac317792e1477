"""`kron_variance`, `kron_project` and `ggn_project` in CUDA, for q in bfloat16 on a GPU; csrc/cuda has the kernels."""

from functools import cache

import torch
from torch import Tensor

from bayesrm_fast.ops.chips import MOST_SEGMENTS_STREAMED, Chip, chip_of
from bayesrm_fast.ops.cuda.binding import compiled, missing, shared_memory
from bayesrm_fast.ops.cuda.configs import MOST_K, MOST_R


def unavailable() -> str | None:
    """Why no call is served on this machine; None where calls are."""
    if missing is not None:
        return missing
    return None if torch.cuda.is_available() else "there is no GPU that torch can use here"


def refuses(operation: str, tensors: tuple[Tensor, ...]) -> str | None:
    """Why this call is not served; None where it is."""
    if operation == "segment_outer":
        return "it serves kron_variance, kron_project and ggn_project"
    if any(tensor.device.type != "cuda" for tensor in tensors):
        return "it serves CUDA tensors"
    p, q, offsets, *constants = tensors
    if q.dtype != torch.bfloat16 or p.dtype not in (torch.bfloat16, torch.float32):
        return f"it serves q in bfloat16 beside p in bfloat16 or float32, not {q.dtype} beside {p.dtype}"
    if any(constant.dtype == torch.float64 for constant in constants):
        return "it computes in float32, not float64"
    (tokens, d), r = q.shape, p.shape[1]
    if r > MOST_R:
        return f"it serves r up to {MOST_R}, not {r}"
    if d % 8:
        return f"its copies need d to be a multiple of 8, not {d}"
    if tokens >= 2**31:
        return f"it counts tokens in 32 bits, not {tokens}"
    if operation == "ggn_project":
        refused = ggn_refuses(offsets.shape[0] - 1, *constants)
    else:
        k = constants[1].shape[1] if len(constants) > 1 else 0  # availability is asked without the bases
        refused = f"it serves k up to {MOST_K}, not {k}" if k > MOST_K else None
        refused = refused or chip_refuses(chip_of(q.device), r, k)
    return refused or _device_refuses(q.device)


def ggn_refuses(segments: int, *bases: Tensor) -> str | None:
    """Why so many segments, or bases of such a dtype, are not served; None where they are."""
    if segments > MOST_SEGMENTS_STREAMED:
        return f"it serves up to {MOST_SEGMENTS_STREAMED} segments, not {segments}"
    if any(tensor.dtype not in (torch.bfloat16, torch.float32) for tensor in bases):
        return f"it serves bases in bfloat16 and float32, not {bases[0].dtype}"
    return None


def chip_refuses(chip: Chip, r: int, k: int) -> str | None:
    """Why a chip has no room for the kernels of r and k; None where it has."""
    if chip.capability < 80:
        return f"it needs compute capability 8.0, not {chip.capability / 10}"
    return chip.refuses(shared_memory(r, k, chip))


def architectures() -> str:
    """What the kernels were compiled for, as CMake writes it; or why they were not."""
    return missing or compiled.architectures


@cache
def _device_refuses(device: torch.device) -> str | None:
    try:
        compiled.require_kernels(device.index)
    except RuntimeError as error:
        return f"it was built for {compiled.architectures} ({error})"
    return None
