"""`C = VᵀGU` and the squared norms of the rows of `VᵀG − CUᵀ`."""

import torch
from torch import Tensor

from bayesrm_fast.ops.reference.segment_outer import segment_outer


def kron_project(p: Tensor, q: Tensor, offsets: Tensor, basis_p: Tensor, basis_q: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(p.dtype, q.dtype), torch.float32)
    basis_p, basis_q = basis_p.to(dtype), basis_q.to(dtype)
    rotated = segment_outer(p.to(dtype) @ basis_p, q, offsets)
    coordinates = rotated @ basis_q
    outside = rotated - coordinates @ basis_q.T
    return coordinates, outside.square().sum(-1)
