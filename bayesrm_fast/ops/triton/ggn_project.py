"""Kernels of `ggn_project`: tiles of columns, split over programs, then a sum over the pieces.

Two ways differ in what is read more than once:

- of few segments the bases are nearly all that is read, and it is read once: a program forms a tile of one gradient,
  multiplies it with the same tile of the bases and forgets it. Vector units do that as fast as the bases come.
- of more segments the gradients are written to memory, so that the bases are not read for each, and matrix units
  multiply. Their operands are the gradient's three bfloat16 parts, and no sum of theirs is longer than a tile is wide:
  a matrix unit truncates as it accumulates, and over thousands of columns that is a bias of 10⁻⁶, as much as an outside
  that counts.

How many digits a sum keeps is decided by q:

- in bfloat16 those of float32. Such a q cannot say more: its own rounding (2⁻⁹) puts 10⁻⁶ of every norm outside any
  subspace.
- in float16 and float32 some 10⁻⁹. Sums in float32 fail, by 10⁻⁷, and float64 is slow on most GPUs. So every product is
  kept with its rounding, and cut where all of a tile are cut, so that the sum of the upper parts is exact in any order.
  That takes vector units: the second kernel does not serve these.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayesrm_fast.ops.chips import chip_of
from bayesrm_fast.ops.triton.configs import (
    ggn_splits,
    needs_digits,
    product_tiles,
    stream_tiles,
    takes_gradients,
    widens,
)
from bayesrm_fast.ops.triton.primitives import add_in_vector_units, dot_thirds, outer_tile, thirds
from bayesrm_fast.ops.triton.segment_outer import segment_outer


@triton.jit
def exact_sums(a, b, ADDENDS: tl.constexpr):  # shapes: [·, m, n] each, one of them perhaps [1, m, n]; m n = ADDENDS
    """`Σ a b` over the last two axes, as a sum that is exact and a rest that float32 holds well enough."""
    product = a * b
    rounding = tl.fma(a, b, -product)
    largest = tl.max(tl.max(tl.abs(product), axis=2), axis=1)
    power = (largest.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)  # of two, at most `largest`
    # Adding it leaves of every product a multiple of one number, of which 2²⁴ are more than all products together.
    cut = (power * (3.0 * ADDENDS))[:, None, None]
    upper = (product + cut) - cut
    lower = (product - upper) + rounding
    return tl.sum(tl.sum(upper, axis=2), axis=1), tl.sum(tl.sum(lower, axis=2), axis=1)


@triton.jit
def add_pair(total, rest, upper, lower):
    """`total + rest + upper + lower` as a float32 and what it leaves."""
    added = total + upper
    back = added - total
    return added, rest + lower + ((total - (added - back)) + (upper - back))


@triton.jit
def bases_tile(bases, rows, columns, js, r, d, k):  # shape: [k, r, d] in memory
    """Some bases [KC] at some rows [R] and columns [BD]: [KC, R, BD]."""
    at = (js[:, None, None].to(tl.int64) * r + rows[None, :, None]) * d + columns[None, None, :]
    fits = (js < k)[:, None, None] & (rows < r)[None, :, None] & (columns < d)[None, None, :]
    return tl.load(bases + at, mask=fits, other=0.0)


@triton.jit(do_not_specialize=["per_program"])
def stream_bases(
    p, q, offsets, bases, parts, rests, r, d, k, per_program, R: tl.constexpr, KC: tl.constexpr, CHUNKS: tl.constexpr,
    BD: tl.constexpr, BT: tl.constexpr, WIDEN: tl.constexpr, DIGITS: tl.constexpr,
):  # fmt: skip
    """`parts [N, pieces, k + 1]` of one segment and CHUNKS times KC bases a program: products, then the squared norm.

    `rests`, of the same shape, has with DIGITS what a float32 leaves of them.
    """
    n, split, row_chunks = tl.program_id(0).to(tl.int64), tl.program_id(1), (r + R - 1) // R
    row_chunk, first_j = tl.program_id(2) % row_chunks, tl.program_id(2) // row_chunks * (CHUNKS * KC)
    rows, js, chunks = row_chunk * R + tl.arange(0, R), first_j + tl.arange(0, KC), tl.arange(0, CHUNKS)[:, None]
    start, stop = tl.load(offsets + n), tl.load(offsets + n + 1)
    total, rest = tl.zeros([CHUNKS, KC], dtype=tl.float32), tl.zeros([CHUNKS, KC], dtype=tl.float32)
    norm, norm_rest = tl.zeros([1], dtype=tl.float32), tl.zeros([1], dtype=tl.float32)
    for tile in range(split * per_program, min((split + 1) * per_program, (d + BD - 1) // BD)):
        columns = tile * BD + tl.arange(0, BD)
        # Each is asked for before the one ahead of it is used, the first before the gradient is formed.
        coming = bases_tile(bases, rows, columns, js, r, d, k)
        gradient = outer_tile(p, q, start, stop, rows, columns, r, d, R, BD, BT, WIDEN)[None, :, :]
        for chunk in range(CHUNKS):
            b = coming.to(tl.float32)
            if CHUNKS > 1:
                coming = bases_tile(bases, rows, columns, js + (chunk + 1) * KC, r, d, min(k, first_j + CHUNKS * KC))
            if DIGITS:
                upper, lower = exact_sums(gradient, b, R * BD)
                upper, lower = tl.where(chunks == chunk, upper, 0.0), tl.where(chunks == chunk, lower, 0.0)
                total, rest = add_pair(total, rest, upper, lower)
            else:
                total += tl.where(chunks == chunk, tl.sum(tl.sum(gradient * b, axis=2), axis=1), 0.0)
        if DIGITS:
            upper, lower = exact_sums(gradient, gradient, R * BD)
            norm, norm_rest = add_pair(norm, norm_rest, upper, lower)
        else:
            norm += tl.sum(tl.sum(gradient * gradient, axis=2), axis=1)
    piece = (n * tl.num_programs(1) + split) * row_chunks + row_chunk
    js = js[None, :] + chunks * KC
    at_products, at_norm = piece * (k + 1) + js, piece * (k + 1) + k + tl.arange(0, 1)
    tl.store(parts + at_products, total, mask=js < k)
    if DIGITS:
        tl.store(rests + at_products, rest, mask=js < k)
    if first_j == 0:
        tl.store(parts + at_norm, norm)
        if DIGITS:
            tl.store(rests + at_norm, norm_rest)


@triton.jit(do_not_specialize=["count", "per_program"])
def multiply_gradients(
    gradients, bases, parts, count, size, k, per_program,
    S: tl.constexpr, KC: tl.constexpr, BD: tl.constexpr, SPLIT_BASES: tl.constexpr,
):  # fmt: skip
    """`parts [N, splits, k + 1]` of S segments and KC bases a program: products, then the squared norm.

    `gradients [N, size]` in float32, `bases [k, size]`.
    """
    split = tl.program_id(2)
    js, segments = tl.program_id(0) * KC + tl.arange(0, KC), tl.program_id(1) * S + tl.arange(0, S)
    at_gradients, at_bases = segments.to(tl.int64)[None, :] * size, js.to(tl.int64)[:, None] * size
    total = tl.zeros([KC, S], dtype=tl.float32)
    norm = tl.zeros([S], dtype=tl.float32)
    for tile in range(split * per_program, min((split + 1) * per_program, (size + BD - 1) // BD)):
        columns = tile * BD + tl.arange(0, BD)
        fits = columns < size
        g = tl.load(
            gradients + at_gradients + columns[:, None], mask=fits[:, None] & (segments < count)[None, :], other=0.0
        )
        b = tl.load(bases + at_bases + columns[None, :], mask=fits[None, :] & (js < k)[:, None], other=0.0)
        if bases.dtype.element_ty == tl.int8:  # which has no more digits than bfloat16
            b = b.to(tl.float32).to(tl.bfloat16)
        norm += tl.sum(g * g, axis=0)
        first_third, second_third, third_third = thirds(g)
        product = dot_thirds(b, third_third, tl.zeros([KC, S], dtype=tl.float32), SPLIT_BASES)
        product = dot_thirds(b, second_third, product, SPLIT_BASES)
        product = dot_thirds(b, first_third, product, SPLIT_BASES)
        total = add_in_vector_units(product, total)
    piece = segments.to(tl.int64) * tl.num_programs(2) + split
    tl.store(
        parts + piece[None, :] * (k + 1) + js[:, None], total, mask=(segments < count)[None, :] & (js < k)[:, None]
    )
    if tl.program_id(0) == 0:
        tl.store(parts + piece * (k + 1) + k, norm, mask=segments < count)


@triton.jit(do_not_specialize=["pieces"])
def sum_pieces(parts, rests, products, squared_norm, pieces, k, KC: tl.constexpr, DIGITS: tl.constexpr):
    """`products [N, k]` and `squared_norm [N]` in float64, of the pieces in their order."""
    n = tl.program_id(0).to(tl.int64)
    js = tl.program_id(1) * KC + tl.arange(0, KC)
    total, rest = tl.zeros([KC], dtype=tl.float32), tl.zeros([KC], dtype=tl.float32)
    for piece in range(pieces):
        at = (n * pieces + piece) * (k + 1) + js
        upper = tl.load(parts + at, mask=js <= k, other=0.0)
        lower = tl.zeros([KC], dtype=tl.float32)
        if DIGITS:
            lower = tl.load(rests + at, mask=js <= k, other=0.0)
        total, rest = add_pair(total, rest, upper, lower)
    both = total.to(tl.float64) + rest.to(tl.float64)
    tl.store(products + n * k + js, both, mask=js < k)
    tl.store(squared_norm + n + js * 0, both, mask=js == k)


SUM_BLOCKS = {"KC": 64}

MOST_GRADIENTS = 2**26
"""Elements of the gradients that are written at a time: a quarter of a gibibyte."""


def ggn_project(p: Tensor, q: Tensor, offsets: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """As `bayesrm_fast.ops.ggn_project`."""
    p, q, offsets, bases = p.contiguous(), q.contiguous(), offsets.contiguous(), bases.contiguous()
    count, (k, r, d) = offsets.shape[0] - 1, bases.shape
    products = torch.empty((count, k), dtype=torch.float64, device=q.device)
    squared_norm = torch.empty(count, dtype=torch.float64, device=q.device)
    if not takes_gradients(count, q.dtype):
        _streamed(p, q, offsets, bases, products, squared_norm)
        return products, squared_norm
    at_once = max(1, MOST_GRADIENTS // (r * d))
    for first in range(0, count, at_once):
        some = slice(first, min(first + at_once, count))
        gradients = segment_outer(p, q, offsets[some.start : some.stop + 1])
        _multiplied(gradients, bases, products[some], squared_norm[some])
    return products, squared_norm


def _streamed(p: Tensor, q: Tensor, offsets: Tensor, bases: Tensor, products: Tensor, squared_norm: Tensor) -> None:
    count, (k, r, d), digits = offsets.shape[0] - 1, bases.shape, needs_digits(q.dtype)
    if count == 0:
        return
    t = stream_tiles(d, k, p.dtype, q.dtype)
    chunks, row_chunks = max(1, -(-k // (t.bases * t.chunks))), -(-r // t.rows)
    per_program, splits = ggn_splits(count * chunks * row_chunks, -(-d // t.columns), chip_of(q.device))
    parts = torch.empty((count, splits * row_chunks, k + 1), dtype=torch.float32, device=q.device)
    rests = torch.empty_like(parts) if digits else parts
    blocks = {"R": t.rows, "KC": t.bases, "CHUNKS": t.chunks, "BD": t.columns, "BT": t.tokens}
    flags = {"WIDEN": widens(p.dtype, q.dtype), "DIGITS": digits, "num_warps": t.warps, "num_stages": t.stages}
    stream_bases[count, splits, chunks * row_chunks](
        p, q, offsets, bases, parts, rests, r, d, k, per_program, **blocks, **flags
    )
    _sum_pieces(parts, rests, products, squared_norm, digits)


def _multiplied(gradients: Tensor, bases: Tensor, products: Tensor, squared_norm: Tensor) -> None:
    count, k, size = len(gradients), len(bases), gradients[0].numel()
    t = product_tiles(k)
    groups, chunks = -(-count // t.segments), max(1, -(-k // t.bases))
    per_program, splits = ggn_splits(groups * chunks, -(-size // t.columns), chip_of(bases.device))
    parts = torch.empty((count, splits, k + 1), dtype=torch.float32, device=bases.device)
    blocks = {"S": t.segments, "KC": t.bases, "BD": t.columns, "num_warps": t.warps, "num_stages": t.stages}
    multiply_gradients[chunks, groups, splits](
        gradients, bases, parts, count, size, k, per_program, SPLIT_BASES=bases.dtype == torch.float32, **blocks
    )
    _sum_pieces(parts, parts, products, squared_norm, digits=False)


def _sum_pieces(parts: Tensor, rests: Tensor, products: Tensor, squared_norm: Tensor, digits: bool) -> None:
    count, pieces, k = parts.shape[0], parts.shape[1], parts.shape[2] - 1
    grid = (count, k // SUM_BLOCKS["KC"] + 1)
    sum_pieces[grid](parts, rests, products, squared_norm, pieces, k, DIGITS=digits, **SUM_BLOCKS)
