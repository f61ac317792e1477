"""Kernels of `kron_project`: tiles of columns, split over programs, then a sum over the splits.

Each program walks some column tiles of one segment: the gradient's tile is formed from q, rotated by V, multiplied by
U's tile and forgotten. What lies outside span(U) is found in one of two ways:

- q in bfloat16: as the row's norm minus its coordinates' norm, both from the same tile and in full float32, in the one
  pass over q. The difference is off by some 10⁻⁷ of the row's norm, and such a q cannot say more: its own rounding
  (2⁻⁹) puts 10⁻⁶ of every norm outside any subspace.
- q in float16 and float32: a second pass over q forms the part outside before it is squared, since such inputs can lie
  closer to span(U) than the difference can tell.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayesrm_fast.ops.chips import chip_of, tiles_per_program
from bayesrm_fast.ops.triton.configs import MOST_ROWS_A_PROGRAM, needs_digits, tiles, widens
from bayesrm_fast.ops.triton.primitives import basis_tile, dot, rotated_tile


@triton.jit(do_not_specialize=["tokens"])
def rotate_rows(p, basis_p, rotated, tokens, r, BT: tl.constexpr, R: tl.constexpr, BK: tl.constexpr):
    """`rotated = p V`, [T, r] in float32: for sites with more rows than one program takes."""
    ts = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    rows = tl.program_id(1) * R + tl.arange(0, R)
    tile = tl.zeros([BT, R], dtype=tl.float32)
    for first in range(0, r, BK):
        inner = first + tl.arange(0, BK)
        left = tl.load(
            p + ts[:, None] * r + inner[None, :], mask=(ts < tokens)[:, None] & (inner < r)[None, :], other=0.0
        )
        v = tl.load(
            basis_p + inner[:, None] * r + rows[None, :], mask=(inner < r)[:, None] & (rows < r)[None, :], other=0.0
        )
        tile = dot(left, v, tile, True)
    tl.store(rotated + ts[:, None] * r + rows[None, :], tile, mask=(ts < tokens)[:, None] & (rows < r)[None, :])


@triton.jit(do_not_specialize=["per_program"])
def project_tiles(
    p, q, offsets, basis_p, basis_q_t, parts, norms, r, d, k, per_program,
    R: tl.constexpr, KC: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, WIDEN: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    """`parts [N, splits, r, k]`: each split's share of C; `norms [N, splits, r]`: of VᵀG's squared row norms."""
    n, split, splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    row_chunks = (r + R - 1) // R
    rows = tl.program_id(2) % row_chunks * R + tl.arange(0, R)
    first_j = tl.program_id(2) // row_chunks * KC
    js = first_j + tl.arange(0, KC)
    start, stop = tl.load(offsets + n), tl.load(offsets + n + 1)
    c = tl.zeros([R, KC], dtype=tl.float32)
    norm = tl.zeros([R], dtype=tl.float32)
    for tile in range(split * per_program, min((split + 1) * per_program, (d + BD - 1) // BD)):
        columns = tile * BD + tl.arange(0, BD)
        rotated = rotated_tile(p, q, basis_p, start, stop, rows, columns, r, d, R, BD, BT, WIDEN, ROTATE)
        c = dot(rotated, basis_tile(basis_q_t, columns, js, d, k), c, True)
        norm += tl.sum(rotated * rotated, axis=1)
    at = (n * splits + split) * r + rows
    tl.store(parts + at[:, None] * k + js[None, :], c, mask=(rows < r)[:, None] & (js < k)[None, :])
    if first_j == 0:
        tl.store(norms + at, norm, mask=rows < r)


@triton.jit(do_not_specialize=["per_program"])
def outside_tiles(
    p, q, offsets, basis_p, basis_q_t, coordinates, norms, r, d, k, per_program,
    R: tl.constexpr, KC: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, WIDEN: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    """`norms [N, splits, r]`: each split's share of the squared norms of the rows of VᵀG − CUᵀ."""
    n, split, splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    rows = tl.program_id(2) * R + tl.arange(0, R)
    start, stop = tl.load(offsets + n), tl.load(offsets + n + 1)
    norm = tl.zeros([R], dtype=tl.float32)
    for tile in range(split * per_program, min((split + 1) * per_program, (d + BD - 1) // BD)):
        columns = tile * BD + tl.arange(0, BD)
        outside = rotated_tile(p, q, basis_p, start, stop, rows, columns, r, d, R, BD, BT, WIDEN, ROTATE)
        for first_j in range(0, k, KC):
            js = first_j + tl.arange(0, KC)
            at = coordinates + (n * r + rows)[:, None] * k + js[None, :]
            c = tl.load(at, mask=(rows < r)[:, None] & (js < k)[None, :], other=0.0)
            outside = dot(-c, tl.trans(basis_tile(basis_q_t, columns, js, d, k)), outside, True)
        norm += tl.sum(outside * outside, axis=1)
    tl.store(norms + (n * splits + split) * r + rows, norm, mask=rows < r)


@triton.jit
def summed_part(parts, n, splits, rows, js, r, k, R: tl.constexpr, KC: tl.constexpr):
    """C at some rows [R] and columns [KC], summed over the splits in their order."""
    c = tl.zeros([R, KC], dtype=tl.float32)
    for split in range(splits):
        at = parts + ((n * splits + split) * r + rows)[:, None] * k + js[None, :]
        c += tl.load(at, mask=(rows < r)[:, None] & (js < k)[None, :], other=0.0)
    return c


@triton.jit
def summed_norm(norms, n, splits, rows, r, R: tl.constexpr):
    """Squared norms of some rows [R], summed over the splits in their order."""
    norm = tl.zeros([R], dtype=tl.float32)
    for split in range(splits):
        norm += tl.load(norms + (n * splits + split) * r + rows, mask=rows < r, other=0.0)
    return norm


@triton.jit(do_not_specialize=["splits"])
def sum_splits(parts, norms, coordinates, outside, splits, r, k, R: tl.constexpr, KC: tl.constexpr):
    """`coordinates [N, r, k]` and, as differences of norms, `outside [N, r]`."""
    n = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * R + tl.arange(0, R)
    norm = summed_norm(norms, n, splits, rows, r, R)
    for first_j in range(0, k, KC):
        js = first_j + tl.arange(0, KC)
        c = summed_part(parts, n, splits, rows, js, r, k, R, KC)
        at = coordinates + (n * r + rows)[:, None] * k + js[None, :]
        tl.store(at, c, mask=(rows < r)[:, None] & (js < k)[None, :])
        norm -= tl.sum(c * c, axis=1)
    tl.store(outside + n * r + rows, tl.maximum(norm, 0.0), mask=rows < r)


ROTATE_BLOCKS = {"BT": 64, "R": 64, "BK": 32}
SUM_BLOCKS = {"R": 16, "KC": 64}


class Projection:
    """The arguments made ready for the kernels, and their launches."""

    def __init__(self, p: Tensor, q: Tensor, offsets: Tensor, basis_p: Tensor, basis_q: Tensor) -> None:
        self.p, self.q, self.offsets = p.contiguous(), q.contiguous(), offsets.contiguous()
        self.basis_p, self.basis_q_t = basis_p.float().contiguous(), basis_q.float().T.contiguous()
        self.count, self.r, (self.d, self.k) = offsets.shape[0] - 1, p.shape[1], basis_q.shape
        self.chip = chip_of(q.device)
        self.second_pass = needs_digits(q.dtype)
        self.rotate = self.r <= MOST_ROWS_A_PROGRAM
        if not self.rotate:
            self.p = self._rotated()
        self.dtypes = (self.p.dtype, q.dtype)

    def project(self) -> tuple[Tensor, Tensor]:  # shapes: (N, r, k), (N, r)
        """C and the squared row norms of VᵀG − CUᵀ."""
        coordinates, outside = self.empty(self.count, self.r, self.k), self.empty(self.count, self.r)
        if outside.numel():
            parts, norms = self.shares()
            grid = (self.count, -(-self.r // SUM_BLOCKS["R"]))
            sum_splits[grid](parts, norms, coordinates, outside, parts.shape[1], self.r, self.k, **SUM_BLOCKS)
            if self.second_pass:
                outside = self.outside(coordinates)
        return coordinates, outside

    def shares(self) -> tuple[Tensor, Tensor]:  # shapes: (N, splits, r, k), (N, splits, r)
        """Each split's share of C and of the squared row norms of VᵀG."""
        t = tiles(self.r, self.d, self.k, *self.dtypes, self.chip)
        per_program = tiles_per_program(self.count, t.columns, self.d, self.chip)
        splits = -(-self.d // (t.columns * per_program))
        parts, norms = self.empty(self.count, splits, self.r, self.k), self.empty(self.count, splits, self.r)
        chunks = -(-self.r // t.rows) * max(1, -(-self.k // t.basis))
        self._launch(project_tiles, (self.count, splits, chunks), t, per_program, parts, norms)
        return parts, norms

    def outside(self, coordinates: Tensor) -> Tensor:  # shapes: (N, r, k), (N, r)
        """Squared row norms of VᵀG − CUᵀ, by a second pass over q."""
        t = tiles(self.r, self.d, self.k, *self.dtypes, self.chip, second_pass=True)
        per_program = tiles_per_program(self.count, t.columns, self.d, self.chip)
        splits = -(-self.d // (t.columns * per_program))
        norms = self.empty(self.count, splits, self.r)
        grid = (self.count, splits, -(-self.r // t.rows))
        self._launch(outside_tiles, grid, t, per_program, coordinates, norms)
        return norms.sum(1)

    def empty(self, *shape: int) -> Tensor:
        """Fresh float32 memory beside q."""
        return torch.empty(shape, dtype=torch.float32, device=self.q.device)

    def _rotated(self) -> Tensor:  # shape: (T, r)
        tokens = self.p.shape[0]
        rotated = self.empty(tokens, self.r)
        if tokens:
            grid = (-(-tokens // ROTATE_BLOCKS["BT"]), -(-self.r // ROTATE_BLOCKS["R"]))
            rotate_rows[grid](self.p, self.basis_p, rotated, tokens, self.r, **ROTATE_BLOCKS)
        return rotated

    def _launch(self, kernel: Any, grid: tuple[int, int, int], t: Any, per_program: int, *outputs: Tensor) -> None:
        inputs = (self.p, self.q, self.offsets, self.basis_p, self.basis_q_t)
        blocks = {"R": t.rows, "KC": t.basis, "BD": t.columns, "BT": t.tokens}
        flags = {"WIDEN": widens(*self.dtypes), "ROTATE": self.rotate, "num_warps": t.warps, "num_stages": t.stages}
        kernel[grid](*inputs, *outputs, self.r, self.d, self.k, per_program, **blocks, **flags)


def kron_project(p: Tensor, q: Tensor, offsets: Tensor, basis_p: Tensor, basis_q: Tensor) -> tuple[Tensor, Tensor]:
    """As `bayesrm_fast.ops.kron_project`."""
    return Projection(p, q, offsets, basis_p, basis_q).project()
