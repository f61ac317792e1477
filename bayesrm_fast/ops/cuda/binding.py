"""The compiled module, where there is one, and the one call that both operations are."""

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bayesrm_fast.ops.chips import chip_of
from bayesrm_fast.ops.configs import Launch, launch


def _compiled_module() -> tuple[Any, str | None]:
    try:
        return importlib.import_module("bayesrm_fast._cuda"), None
    except ImportError as error:
        return None, f"the CUDA part is not here ({error}); install with nvcc at hand"


compiled, missing = _compiled_module()
"""The module, None where it is not there, and then why."""


def project(
    p: Tensor,  # shape: (T, r)
    q: Tensor,  # shape: (T, d)
    offsets: Tensor,  # shape: (N + 1,)
    basis_p: Tensor,  # shape: (r, r)
    basis_q: Tensor,  # shape: (d, k)
    *outputs: Tensor,  # of shapes (N,), or (N, r, k) and (N, r)
    weight: Tensor | None = None,  # shape: (r, k)
    residual: Tensor | None = None,  # shape: (r,)
) -> None:
    """Write the variance, where `weight` and `residual` are given, or the coordinates and what is outside the basis."""
    (tokens, r), (d, k), count = p.shape, basis_q.shape, offsets.shape[0] - 1
    if count == 0:
        return
    if tokens == 0:
        for output in outputs:
            output.zero_()
        return
    chip = chip_of(q.device)
    how = launch(r, d, k, count, chip, hopper=chip.capability == 90 and "90a" in compiled.architectures)
    # A GPU copies 16 bytes at a time.
    p, q = _aligned(torch.nn.functional.pad(p, (0, -r % 8))), _aligned(q)
    held = [p, q, offsets.contiguous(), basis_p.float().contiguous(), basis_q.float().T.contiguous()]
    constants = [x.float().contiguous() for x in (weight, residual) if x is not None]
    parts, clusters = None, 1
    if how.kernel == "portable":
        parts = torch.empty((count, how.blocks, how.rows, how.rows + how.basis), dtype=torch.float32, device=q.device)
    else:
        clusters = min(count, _resident_clusters(q.device.index, how))
    inputs = [x.data_ptr() for x in held] + ([x.data_ptr() for x in constants] or [0, 0])
    results = [x.data_ptr() for x in outputs]
    results = [*results, 0, 0] if constants else [0, *results]
    sizes = (tokens, count, r, p.shape[1], d, k, how.rows, how.basis, how.blocks, clusters)
    stream = torch.cuda.current_stream(q.device).cuda_stream
    compiled.project(q.device.index, stream, *inputs, *results, 0 if parts is None else parts.data_ptr(), *sizes)


def _aligned(tensor: Tensor) -> Tensor:
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


@cache
def _resident_clusters(device: int, how: Launch) -> int:
    clusters: int = compiled.resident_clusters(device, how.rows, how.basis, how.blocks)
    return clusters
