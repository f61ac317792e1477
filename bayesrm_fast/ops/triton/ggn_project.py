"""Kernels of `ggn_project`: tiles of columns, split over programs, then a sum over the pieces.

A program forms a tile of the gradient, multiplies it with the same tile of the bases and forgets it. Two kernels differ
in what a program holds:

- of few segments one, since the bases are nearly all that is read: vector units multiply them as fast as they come.
- of more segments sixteen, so that the bases are not read for each: matrix units multiply. Their operands are the
  gradient's three bfloat16 parts, and no sum of theirs is longer than a tile is wide: a matrix unit truncates as it
  accumulates, and over thousands of columns that is a bias of 10⁻⁶, as much as an outside that counts.

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
    group_tiles,
    largest_itemsize,
    needs_digits,
    stream_tiles,
    takes_groups,
    widens,
)
from bayesrm_fast.ops.triton.primitives import dot_thirds, outer_tile, thirds


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
def multiply_groups(
    p, q, offsets, bases, parts, count, r, d, k, per_program,
    S: tl.constexpr, R: tl.constexpr, KC: tl.constexpr, CHUNKS: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
    SPLIT_P: tl.constexpr, SPLIT_BASES: tl.constexpr,
):  # fmt: skip
    """`parts [N, pieces, k + 1]` of S segments and CHUNKS times KC bases a program, as in `stream_bases`."""
    row_chunks = (r + R - 1) // R
    row_chunk, first_j = tl.program_id(0) % row_chunks, tl.program_id(0) // row_chunks * (CHUNKS * KC)
    group, split = tl.program_id(1), tl.program_id(2)
    rows, js, chunks = row_chunk * R + tl.arange(0, R), first_j + tl.arange(0, KC), tl.arange(0, CHUNKS)[:, None, None]
    segments = (group * S + tl.arange(0, S)).to(tl.int64)
    starts = tl.load(offsets + segments, mask=segments < count, other=0)
    stops = tl.load(offsets + segments + 1, mask=segments < count, other=0)
    longest = tl.max(stops - starts, axis=0)
    total = tl.zeros([CHUNKS, KC, S], dtype=tl.float32)
    norm = tl.zeros([S], dtype=tl.float32)
    for tile in range(split * per_program, min((split + 1) * per_program, (d + BD - 1) // BD)):
        columns = tile * BD + tl.arange(0, BD)
        gradient = tl.zeros([S, R, BD], dtype=tl.float32)
        for first in range(0, longest, BT):
            tokens = starts[:, None] + first + tl.arange(0, BT)[None, :]
            live = (tokens < stops[:, None])[:, :, None]
            at_p = tokens[:, :, None] * r + rows[None, None, :]
            at_q = tokens[:, :, None] * d + columns[None, None, :]
            left = tl.permute(tl.load(p + at_p, mask=live & (rows < r)[None, None, :], other=0.0), (0, 2, 1))
            right = tl.load(q + at_q, mask=live & (columns < d)[None, None, :], other=0.0)
            gradient = dot_thirds(left, right, gradient, SPLIT_P)
        coming = bases_tile(bases, rows, columns, js, r, d, k)
        norm += tl.sum(tl.sum(gradient * gradient, axis=2), axis=1)
        first_third, second_third, third_third = thirds(tl.permute(gradient, (1, 2, 0)))
        for chunk in range(CHUNKS):
            b = tl.permute(coming, (1, 0, 2))
            if bases.dtype.element_ty == tl.int8:  # which has no more digits than bfloat16
                b = b.to(tl.float32).to(tl.bfloat16)
            coming = bases_tile(bases, rows, columns, js + (chunk + 1) * KC, r, d, min(k, first_j + CHUNKS * KC))
            product = dot_thirds(b, third_third, tl.zeros([R, KC, S], dtype=tl.float32), SPLIT_BASES)
            product = dot_thirds(b, second_third, product, SPLIT_BASES)
            product = dot_thirds(b, first_third, product, SPLIT_BASES)
            total += tl.where(chunks == chunk, tl.sum(product, axis=0)[None, :, :], 0.0)
    piece = (segments * tl.num_programs(2) + split) * row_chunks + row_chunk
    js = js[None, :, None] + chunks * KC
    at = piece[None, None, :] * (k + 1) + js
    tl.store(parts + at, total, mask=(segments < count)[None, None, :] & (js < k))
    if first_j == 0:
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


def ggn_project(p: Tensor, q: Tensor, offsets: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """As `bayesrm_fast.ops.ggn_project`."""
    p, q, offsets, bases = p.contiguous(), q.contiguous(), offsets.contiguous(), bases.contiguous()
    count, (k, r, d) = offsets.shape[0] - 1, bases.shape
    products = torch.empty((count, k), dtype=torch.float64, device=q.device)
    squared_norm = torch.empty(count, dtype=torch.float64, device=q.device)
    if count == 0:
        return products, squared_norm
    digits, grouped = needs_digits(q.dtype), takes_groups(count, q.dtype)
    t = group_tiles(k) if grouped else stream_tiles(d, k, largest_itemsize(p.dtype, q.dtype))
    groups = -(-count // t.segments)
    chunks, row_chunks = max(1, -(-k // (t.bases * t.chunks))), -(-r // t.rows)
    per_program, splits = ggn_splits(groups * chunks * row_chunks, d, t, chip_of(q.device))
    pieces = splits * row_chunks
    parts = torch.empty((count, pieces, k + 1), dtype=torch.float32, device=q.device)
    rests = torch.empty_like(parts) if digits else parts
    blocks = {"R": t.rows, "KC": t.bases, "CHUNKS": t.chunks, "BD": t.columns, "BT": t.tokens}
    options = {"num_warps": t.warps, "num_stages": t.stages}
    if grouped:
        flags = {"SPLIT_P": p.dtype != torch.bfloat16, "SPLIT_BASES": bases.dtype == torch.float32}
        multiply_groups[chunks * row_chunks, groups, splits](
            p, q, offsets, bases, parts, count, r, d, k, per_program, S=t.segments, **flags, **blocks, **options
        )
    else:
        flags = {"WIDEN": widens(p.dtype, q.dtype), "DIGITS": digits}
        stream_bases[count, splits, chunks * row_chunks](
            p, q, offsets, bases, parts, rests, r, d, k, per_program, **flags, **blocks, **options
        )
    grid = (count, k // SUM_BLOCKS["KC"] + 1)
    sum_pieces[grid](parts, rests, products, squared_norm, pieces, k, DIGITS=digits, **SUM_BLOCKS)
    return products, squared_norm
