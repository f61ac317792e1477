"""Launches csrc/cuda/ggn.cuh for `ggn_project`."""

import torch
from torch import Tensor

from bayesrm_fast.ops.chips import chip_of, padded
from bayesrm_fast.ops.cuda import binding
from bayesrm_fast.ops.cuda.configs import BOX_COLUMNS, bases_of_block


def ggn_project(p: Tensor, q: Tensor, offsets: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """As `bayesrm_fast.ops.ggn_project`."""
    count, (k, r, d) = offsets.shape[0] - 1, bases.shape
    products = torch.zeros((count, k), dtype=torch.float64, device=q.device)
    squared_norm = torch.zeros(count, dtype=torch.float64, device=q.device)
    if count == 0 or q.shape[0] == 0:
        return products, squared_norm
    at = (q.device.index, torch.cuda.current_stream(q.device).cuda_stream)
    p, p_low = binding.halves(p, *at)
    q, offsets, bases = binding.aligned(q), offsets.contiguous(), binding.aligned(bases)
    parts = torch.empty((count, -(-d // BOX_COLUMNS), k + 1), dtype=torch.float32, device=q.device)
    tensors = (p, p_low, q, offsets, bases, parts, products, squared_norm)
    sizes = (q.shape[0], count, r, p.shape[1], d, k, bases.dtype == torch.float32)
    launch = (padded(r), bases_of_block(d, k, count, chip_of(q.device)))
    binding.compiled.ggn_project(*at, *(binding.address(tensor) for tensor in tensors), *sizes, *launch)
    return products, squared_norm
