"""Launches csrc/cuda for `kron_variance`."""

import torch
from torch import Tensor

from bayesrm_fast.ops.cuda.binding import project


def kron_variance(
    p: Tensor, q: Tensor, offsets: Tensor, basis_p: Tensor, basis_q: Tensor, weight: Tensor, residual: Tensor
) -> Tensor:
    """As `bayesrm_fast.ops.kron_variance`."""
    variance = torch.empty(offsets.shape[0] - 1, dtype=torch.float32, device=q.device)
    project(p, q, offsets, basis_p, basis_q, variance, weight=weight, residual=residual)
    return variance
