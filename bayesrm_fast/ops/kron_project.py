"""Per-segment gradients in a Kronecker basis."""

from torch import Tensor

from bayesrm_fast.ops.backends import serve
from bayesrm_fast.ops.checks import require_bases, require_increasing, require_segments, result_dtype
from bayesrm_fast.ops.library import define


def kron_project(
    p: Tensor,  # shape: (T, r)
    q: Tensor,  # shape: (T, d)
    offsets: Tensor,  # shape: (N + 1,), int64
    basis_p: Tensor,  # shape: (r, r)
    basis_q: Tensor,  # shape: (d, k)
) -> tuple[Tensor, Tensor]:  # shapes: (N, r, k), (N, r)
    """Coordinates `C = VᵀGU` of each segment's gradient `G = Σ p qᵀ`, and what of each row lies outside span(U).

    The second result is `‖(VᵀG)_i − Σ_j C_ij u_j‖²`. It equals `‖(VᵀG)_i‖² − Σ_j C_ij²` in exact arithmetic, but
    the difference of the two norms has no digits left where a gradient lies almost in span(U), and its weight in a
    variance is then the largest one.

    Args:
        p, q, offsets: as in `segment_outer`.
        basis_p: V, orthogonal.
        basis_q: U, orthonormal columns.

    Returns:
        `C` and the residual row norms squared (never negative), float64 where an input is float64, else float32.

    Raises:
        ValueError: a shape, dtype or device does not fit, by the argument's name.
    """
    require_segments(p, q, offsets)
    require_bases(p, q, basis_p, basis_q)
    result: tuple[Tensor, Tensor] = _operator(p, q, offsets, basis_p, basis_q)
    return result


def _kron_project(p: Tensor, q: Tensor, offsets: Tensor, basis_p: Tensor, basis_q: Tensor) -> tuple[Tensor, Tensor]:
    require_increasing(offsets, p.shape[0])
    result: tuple[Tensor, Tensor] = serve("kron_project", p, q, offsets, basis_p, basis_q)
    return result


def _fake(p: Tensor, q: Tensor, offsets: Tensor, basis_p: Tensor, basis_q: Tensor) -> tuple[Tensor, Tensor]:
    coordinates = q.new_empty(offsets.shape[0] - 1, p.shape[1], basis_q.shape[1], dtype=result_dtype(p, q))
    return coordinates, coordinates.new_empty(coordinates.shape[:2])


_operator = define(
    "kron_project(Tensor p, Tensor q, Tensor offsets, Tensor basis_p, Tensor basis_q) -> (Tensor, Tensor)",
    _kron_project,
    _fake,
)
