"""Per-segment gradients in a Kronecker basis."""

from torch import Tensor

from bayesrm_fast.ops.checks import require_bases, require_segments
from bayesrm_fast.ops.reference import kron_project as reference


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
    return reference.kron_project(p, q, offsets, basis_p, basis_q)
