"""Kernel of `segment_outer`: a program for each tile of columns of each segment."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayesrm_fast.ops.chips import chip_of
from bayesrm_fast.ops.triton.configs import tiles, widens
from bayesrm_fast.ops.triton.primitives import outer_tile


@triton.jit
def store_tiles(
    p, q, offsets, gradients, r, d, R: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, WIDEN: tl.constexpr
):  # fmt: skip
    """`gradients [N, r, d]`, one tile a program."""
    n = tl.program_id(0).to(tl.int64)
    rows, columns = tl.program_id(2) * R + tl.arange(0, R), tl.program_id(1) * BD + tl.arange(0, BD)
    start, stop = tl.load(offsets + n), tl.load(offsets + n + 1)
    tile = outer_tile(p, q, start, stop, rows, columns, r, d, R, BD, BT, WIDEN)
    at = gradients + (n * r + rows)[:, None] * d + columns[None, :]
    tl.store(at, tile, mask=(rows < r)[:, None] & (columns < d)[None, :])


def segment_outer(p: Tensor, q: Tensor, offsets: Tensor) -> Tensor:
    """As `bayesrm_fast.ops.segment_outer`."""
    p, q, offsets = p.contiguous(), q.contiguous(), offsets.contiguous()
    count, r, d = offsets.shape[0] - 1, p.shape[1], q.shape[1]
    gradients = p.new_empty(count, r, d, dtype=torch.float32)
    if gradients.numel():
        t = tiles(r, d, 0, p.dtype, q.dtype, chip_of(q.device))
        blocks = {"R": t.rows, "BD": t.columns, "BT": t.tokens, "num_warps": t.warps, "num_stages": t.stages}
        grid = (count, -(-d // t.columns), -(-r // t.rows))
        store_tiles[grid](p, q, offsets, gradients, r, d, WIDEN=widens(p.dtype, q.dtype), **blocks)
    return gradients
