"""Kernel of `kron_variance`: the splits' sum of `kron_project`, weighed in the same launch."""

import triton
import triton.language as tl
from torch import Tensor

from bayesrm_fast.ops.triton.kron_project import SUM_BLOCKS, Projection, summed_norm, summed_part


@triton.jit(do_not_specialize=["splits"])
def weigh_splits(parts, norms, weight, residual, variance, splits, r, k, R: tl.constexpr, KC: tl.constexpr):
    """`variance [N]` from each split's share of C and of the squared row norms."""
    n = tl.program_id(0).to(tl.int64)
    total = 0.0
    for first_row in range(0, r, R):
        rows = first_row + tl.arange(0, R)
        outside = summed_norm(norms, n, splits, rows, r, R)
        for first_j in range(0, k, KC):
            js = first_j + tl.arange(0, KC)
            c = summed_part(parts, n, splits, rows, js, r, k, R, KC)
            fits = (rows < r)[:, None] & (js < k)[None, :]
            w = tl.load(weight + rows[:, None] * k + js[None, :], mask=fits, other=0.0)
            total += tl.sum(tl.sum(w * c * c, axis=1), axis=0)
            outside -= tl.sum(c * c, axis=1)
        res = tl.load(residual + rows, mask=rows < r, other=0.0)
        total += tl.sum(res * tl.maximum(outside, 0.0), axis=0)
    tl.store(variance + n, total)


def kron_variance(
    p: Tensor, q: Tensor, offsets: Tensor, basis_p: Tensor, basis_q: Tensor, weight: Tensor, residual: Tensor
) -> Tensor:
    """As `bayesrm_fast.ops.kron_variance`."""
    weight, residual = weight.float().contiguous(), residual.float().contiguous()
    projection = Projection(p, q, offsets, basis_p, basis_q)
    if projection.second_pass:
        coordinates, outside = projection.project()
        return (weight * coordinates.square()).sum((1, 2)) + (residual * outside).sum(1)
    variance = projection.empty(projection.count)
    if projection.count:
        parts, norms = projection.shares()
        sizes = (parts.shape[1], projection.r, projection.k)
        weigh_splits[(projection.count,)](parts, norms, weight, residual, variance, *sizes, **SUM_BLOCKS)
    return variance
