"""Second moments of token vectors, whole or sketched."""

from torch import Tensor

from bayesrm_fast.ops.backends import serve
from bayesrm_fast.ops.checks import require_shape
from bayesrm_fast.ops.library import define


def second_moment(
    q: Tensor,  # shape: (T, d)
    out: Tensor,  # shape: (d, d), or (d, l) with omega
    omega: Tensor | None = None,  # shape: (d, l)
) -> Tensor:
    """Add `QᵀQ`, or its sketch `Qᵀ(QΩ)`, to `out` and return `out`.

    Args:
        q: one vector per token, any floating dtype.
        out: the accumulator. Products are formed in float32 (float64 if q is) and added in the dtype of `out`: in
            float64 the sum depends on the order of the batches by no more than one product's rounding.
        omega: test matrix of a Nyström sketch.

    Raises:
        ValueError: a shape or dtype does not fit, by the argument's name.
    """
    require_shape("q", q, (None, None))
    if omega is not None:
        require_shape("omega", omega, (q.shape[1], None))
    require_shape("out", out, (q.shape[1], q.shape[1] if omega is None else omega.shape[1]))
    _operator(q, out, omega)
    return out


def _second_moment(q: Tensor, out: Tensor, omega: Tensor | None) -> None:
    serve("second_moment", q, out, omega)


def _fake(q: Tensor, out: Tensor, omega: Tensor | None) -> None:
    return None


_operator = define("second_moment(Tensor q, Tensor(a!) out, Tensor? omega) -> ()", _second_moment, _fake)
