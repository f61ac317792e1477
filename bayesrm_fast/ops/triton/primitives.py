"""What the Triton kernels share: the only `tl.dot`, and the sum of outer products over one tile of columns."""

import triton
import triton.language as tl

INTERPRET = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def add_in_vector_units(product, accumulator):
    """Their sum, rounded to nearest.

    A matrix unit truncates as it accumulates: over two thousand tokens a bias of 10⁻⁵, over thousands of columns one of
    10⁻⁴, of which a difference of norms would see nothing else. So long sums are for vector units; a plain `+` would be
    folded back.
    """
    return tl.fma(product, tl.full(product.shape, 1.0, tl.float32), accumulator)


@triton.jit
def dot(a, b, accumulator, WIDEN: tl.constexpr):  # shapes: [m, k], [k, n], [m, n] in float32
    """`accumulator + a b`. With WIDEN as three products of tf32 halves, good to 2⁻²¹; one such product has ten bits."""
    if INTERPRET:  # it stores bfloat16 as integers, and would multiply those
        return tl.dot(a.to(tl.float32), b.to(tl.float32), accumulator, input_precision="ieee")
    elif WIDEN:
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32x3")
        return add_in_vector_units(product, accumulator)
    else:
        return tl.dot(a, b, accumulator)


@triton.jit
def thirds(x):
    """x as the sum of three bfloat16 values: all digits of a float32."""
    x = x.to(tl.float32)
    first = rounded_to_bfloat16(x)
    x -= first.to(tl.float32)
    second = rounded_to_bfloat16(x)
    return first, second, rounded_to_bfloat16(x - second.to(tl.float32))


@triton.jit
def rounded_to_bfloat16(x):
    """To nearest; the interpreter would truncate."""
    if INTERPRET:
        return (((x.to(tl.int32, bitcast=True) + 0x8000) >> 16) << 16).to(tl.float32, bitcast=True).to(tl.bfloat16)
    else:
        return x.to(tl.bfloat16)


@triton.jit
def dot_thirds(a, b, accumulator, SPLIT_A: tl.constexpr):  # b in bfloat16
    """`accumulator + a b` with all digits of a, which is in bfloat16 or is split; the smallest products come first."""
    if SPLIT_A:
        first, second, third = thirds(a)
        accumulator = dot(third, b, accumulator, False)
        accumulator = dot(second, b, accumulator, False)
        return dot(first, b, accumulator, False)
    else:
        return dot(a, b, accumulator, False)


@triton.jit
def outer_tile(
    p, q, start, stop, rows, columns, r, d, R: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, WIDEN: tl.constexpr
):
    """`Σ p_t q_tᵀ` over the tokens start <= t < stop, at some rows [R] and columns [BD] of the gradient: [R, BD]."""
    tile = tl.zeros([R, BD], dtype=tl.float32)
    for first in range(start, stop, BT):
        tokens = (first + tl.arange(0, BT)).to(tl.int64)  # t · d passes 2³¹
        live = (tokens < stop)[:, None]
        left = tl.load(p + tokens[:, None] * r + rows[None, :], mask=live & (rows < r)[None, :], other=0.0)
        right = tl.load(q + tokens[:, None] * d + columns[None, :], mask=live & (columns < d)[None, :], other=0.0)
        if WIDEN:
            tile = dot(tl.trans(left), right, tile, True)
        else:
            nothing = tl.zeros([R, BD], dtype=tl.float32)
            product = dot_thirds(tl.trans(left), right, nothing, p.dtype.element_ty != q.dtype.element_ty)
            tile = add_in_vector_units(product, tile)
    return tile


@triton.jit
def rotated_tile(
    p, q, basis_p, start, stop, rows, columns, r, d,
    R: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, WIDEN: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    """Some rows [R] and columns [BD] of `VᵀG`: all its rows and V taken here with ROTATE; else p has been rotated."""
    tile = outer_tile(p, q, start, stop, rows, columns, r, d, R, BD, BT, WIDEN)
    if ROTATE:
        fits = (rows < r)[:, None] & (rows < r)[None, :]
        v = tl.load(basis_p + rows[:, None] * r + rows[None, :], mask=fits, other=0.0)
        tile = dot(tl.trans(v), tile, tl.zeros([R, BD], dtype=tl.float32), True)
    return tile


@triton.jit
def basis_tile(basis_q_t, columns, js, d, k):  # shapes: [k, d] in memory, [BD], [KC]
    """U at some of its rows and columns: [BD, KC]."""
    at = basis_q_t + js[None, :].to(tl.int64) * d + columns[:, None]
    return tl.load(at, mask=(js < k)[None, :] & (columns < d)[:, None], other=0.0)
