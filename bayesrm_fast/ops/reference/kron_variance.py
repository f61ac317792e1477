"""`Σ_ij weight_ij C_ij² + Σ_i residual_i ‖(VᵀG − CUᵀ)_i‖²`."""

from torch import Tensor

from bayesrm_fast.ops.reference.kron_project import kron_project


def kron_variance(
    p: Tensor, q: Tensor, offsets: Tensor, basis_p: Tensor, basis_q: Tensor, weight: Tensor, residual: Tensor
) -> Tensor:
    coordinates, outside = kron_project(p, q, offsets, basis_p, basis_q)
    inside = (coordinates.square() * weight.to(coordinates.dtype)).sum((-2, -1))
    return inside + outside @ residual.to(outside.dtype)
