"""Launches csrc/cpu/kron_variance.h."""

import torch
from torch import Tensor

from bayesrm_fast.ops.cpu.binding import Basis, Segments, compiled


def kron_variance(
    p: Tensor, q: Tensor, offsets: Tensor, basis_p: Tensor, basis_q: Tensor, weight: Tensor, residual: Tensor
) -> Tensor:
    """As `bayesrm_fast.ops.kron_variance`."""
    segments, basis = Segments(p, q, offsets), Basis(basis_p, basis_q)
    weight, residual = weight.float().contiguous(), residual.float().contiguous()
    variance = torch.empty(segments.count, dtype=torch.float32, device="cpu")
    outputs = (weight.data_ptr(), residual.data_ptr(), variance.data_ptr())
    compiled.kron_variance(*segments.arguments(), *basis.arguments(), *outputs, torch.get_num_threads())
    return variance
