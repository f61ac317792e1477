"""The compiled module, where there is one, what its calls share, and the one that both Kronecker operations are."""

from functools import cache

import torch
from torch import Tensor

from bayesrm_fast.ops.chips import Chip, chip_of
from bayesrm_fast.ops.compiled import compiled_part
from bayesrm_fast.ops.cuda.configs import compiled_sizes, launch

compiled, missing = compiled_part("_cuda", "nvcc")
"""The module, None where it is not there, and then why."""


def project(
    p: Tensor,  # shape: (T, r), bfloat16 or float32
    q: Tensor,  # shape: (T, d), bfloat16
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
    how = launch(r, d, k, count, tokens, chip, sm90=_has_sm90(chip))
    at = (q.device.index, torch.cuda.current_stream(q.device).cuda_stream)
    p, p_low = halves(p, *at)
    held = [aligned(q), offsets.contiguous(), basis_p.float().contiguous(), basis_q.float().T.contiguous()]
    constants = [x.float().contiguous() for x in (weight, residual) if x is not None]
    parts = torch.empty((count, how.groups, how.rows, how.rows + how.basis), dtype=torch.float32, device=q.device)
    inputs = [x.data_ptr() for x in held] + ([x.data_ptr() for x in constants] or [0, 0])
    results = [x.data_ptr() for x in outputs]
    results = [*results, 0, 0] if constants else [0, *results]
    addresses = (p.data_ptr(), address(p_low), *inputs, *results, parts.data_ptr())
    sizes = (tokens, count, r, p.shape[1], d, k, how.rows, how.basis, how.groups, how.blocks)
    compiled.project(*at, *addresses, *sizes, how.kernel == "sm90")


@cache
def shared_memory(r: int, k: int, chip: Chip) -> int:
    """Bytes that a block takes of the kernel that a call with these sizes runs on a chip."""
    needs: int = compiled.shared_memory(_has_sm90(chip), *compiled_sizes(r, k))
    return needs


def _has_sm90(chip: Chip) -> bool:
    """Whether the sm90 kernel was built, and runs there."""
    return chip.capability == 90 and "90a" in compiled.architectures


def halves(p: Tensor, device: int, stream: int) -> tuple[Tensor, Tensor | None]:  # shape: (T, r)
    """p in bfloat16 with its columns padded to eights, and what that leaves of a float32, of the same shape."""
    tokens, r = p.shape
    p = p.contiguous()
    is_float = p.dtype == torch.float32
    if not is_float and r % 8 == 0 and is_aligned(p):
        return p, None
    stride = r + -r % 8
    high = torch.empty((tokens, stride), dtype=torch.bfloat16, device=p.device)
    low = torch.empty_like(high) if is_float else None
    compiled.split_halves(device, stream, p.data_ptr(), is_float, high.data_ptr(), address(low), tokens, r, stride)
    return high, low


def is_aligned(tensor: Tensor) -> bool:
    """A GPU copies 16 bytes at a time."""
    return tensor.data_ptr() % 16 == 0


def aligned(tensor: Tensor) -> Tensor:
    """The same numbers, contiguous, and where a GPU can copy them from."""
    tensor = tensor.contiguous()
    return tensor if is_aligned(tensor) else tensor.clone()


def address(tensor: Tensor | None) -> int:
    """Of its first element; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
