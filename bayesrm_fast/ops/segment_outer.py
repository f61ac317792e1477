"""Per-segment sums of outer products: the gradient of every sequence at one site."""

from torch import Tensor

from bayesrm_fast.ops.backends import serve
from bayesrm_fast.ops.checks import require_increasing, require_segments, result_dtype
from bayesrm_fast.ops.library import define


def segment_outer(
    p: Tensor,  # shape: (T, r)
    q: Tensor,  # shape: (T, d)
    offsets: Tensor,  # shape: (N + 1,), int64
) -> Tensor:  # shape: (N, r, d)
    """Sum `p_t q_tᵀ` over the tokens t of each segment.

    Args:
        p: small side of each token, any floating dtype.
        q: large side of each token, any floating dtype.
        offsets: segment n holds the tokens `offsets[n] <= t < offsets[n + 1]`; int64, from 0 to T, never decreasing.

    Returns:
        `G`, float64 where p or q is float64 and float32 otherwise. An empty segment gives zeros.

    Raises:
        ValueError: a shape, dtype or device does not fit, by the argument's name.
    """
    require_segments(p, q, offsets)
    result: Tensor = _operator(p, q, offsets)
    return result


def _segment_outer(p: Tensor, q: Tensor, offsets: Tensor) -> Tensor:
    require_increasing(offsets, p.shape[0])
    result: Tensor = serve("segment_outer", p, q, offsets)
    return result


def _fake(p: Tensor, q: Tensor, offsets: Tensor) -> Tensor:
    return q.new_empty(offsets.shape[0] - 1, p.shape[1], q.shape[1], dtype=result_dtype(p, q))


_operator = define("segment_outer(Tensor p, Tensor q, Tensor offsets) -> Tensor", _segment_outer, _fake)
