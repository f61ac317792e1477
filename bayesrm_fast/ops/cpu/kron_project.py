"""Launches csrc/cpu/kron_project.h."""

import torch
from torch import Tensor

from bayesrm_fast.ops.cpu.binding import Basis, Segments, compiled


def kron_project(p: Tensor, q: Tensor, offsets: Tensor, basis_p: Tensor, basis_q: Tensor) -> tuple[Tensor, Tensor]:
    """As `bayesrm_fast.ops.kron_project`."""
    segments, basis = Segments(p, q, offsets), Basis(basis_p, basis_q)
    coordinates = torch.empty((segments.count, segments.r, basis.k), dtype=torch.float32, device="cpu")
    outside = torch.empty((segments.count, segments.r), dtype=torch.float32, device="cpu")
    outputs = (coordinates.data_ptr(), outside.data_ptr())
    compiled.kron_project(*segments.arguments(), *basis.arguments(), *outputs, torch.get_num_threads())
    return coordinates, outside
