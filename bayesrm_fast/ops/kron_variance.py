"""Predictive variance of each segment at one Kronecker-factored site."""

from torch import Tensor

from bayesrm_fast.ops.backends import serve
from bayesrm_fast.ops.checks import (
    require_bases,
    require_device,
    require_increasing,
    require_segments,
    require_shape,
    result_dtype,
)
from bayesrm_fast.ops.library import define


def kron_variance(
    p: Tensor,  # shape: (T, r)
    q: Tensor,  # shape: (T, d)
    offsets: Tensor,  # shape: (N + 1,), int64
    basis_p: Tensor,  # shape: (r, r)
    basis_q: Tensor,  # shape: (d, k)
    weight: Tensor,  # shape: (r, k)
    residual: Tensor,  # shape: (r,)
) -> Tensor:  # shape: (N,)
    """`Σ_ij weight_ij C_ij² + Σ_i residual_i ‖(VᵀG)_i − Σ_j C_ij u_j‖²` for each segment's `G = Σ p qᵀ`, `C = VᵀGU`.

    With `weight = 1 / (E + λ)` and `residual = 1 / (e + λ)` this is `JᵀΣJ` of one site (docs/maths.md, section 3).

    Args:
        p, q, offsets: as in `segment_outer`.
        basis_p: V, orthogonal.
        basis_q: U, orthonormal columns.
        weight: weight of each coordinate inside the basis.
        residual: weight of each row's part outside span(U).

    Returns:
        The variance, never negative; float64 where an input is float64, else float32.

    Raises:
        ValueError: a shape, dtype or device does not fit, by the argument's name.
    """
    require_segments(p, q, offsets)
    require_bases(p, q, basis_p, basis_q)
    require_shape("weight", weight, (p.shape[1], basis_q.shape[1]))
    require_shape("residual", residual, (p.shape[1],))
    require_device(p, weight=weight, residual=residual)
    result: Tensor = _operator(p, q, offsets, basis_p, basis_q, weight, residual)
    return result


def _kron_variance(
    p: Tensor, q: Tensor, offsets: Tensor, basis_p: Tensor, basis_q: Tensor, weight: Tensor, residual: Tensor
) -> Tensor:
    require_increasing(offsets, p.shape[0])
    result: Tensor = serve("kron_variance", p, q, offsets, basis_p, basis_q, weight, residual)
    return result


def _fake(p: Tensor, q: Tensor, offsets: Tensor, *constants: Tensor) -> Tensor:
    return q.new_empty(offsets.shape[0] - 1, dtype=result_dtype(p, q))


_operator = define(
    "kron_variance(Tensor p, Tensor q, Tensor offsets, Tensor basis_p, Tensor basis_q, Tensor weight, Tensor residual)"
    " -> Tensor",
    _kron_variance,
    _fake,
)
