"""Launches csrc/cuda for `kron_project`."""

import torch
from torch import Tensor

from bayesrm_fast.ops.cuda.binding import project


def kron_project(p: Tensor, q: Tensor, offsets: Tensor, basis_p: Tensor, basis_q: Tensor) -> tuple[Tensor, Tensor]:
    """As `bayesrm_fast.ops.kron_project`."""
    count, r, k = offsets.shape[0] - 1, p.shape[1], basis_q.shape[1]
    coordinates = torch.empty((count, r, k), dtype=torch.float32, device=q.device)
    outside = torch.empty((count, r), dtype=torch.float32, device=q.device)
    project(p, q, offsets, basis_p, basis_q, coordinates, outside)
    return coordinates, outside
