"""How the Triton kernels are compiled: pure functions of (shape, dtype, chip), so that they are tested without a GPU.

No count of tokens or segments enters what a kernel is compiled for: another batch never compiles anything.
"""

from dataclasses import dataclass
from functools import cache

import torch

from bayesrm_fast.ops.chips import MOST_SEGMENTS_STREAMED, Chip, padded

MOST_ROWS_A_PROGRAM = 64
"""Of a gradient; a site with more rows takes turns."""

_FLOAT = 4


def widens(p: torch.dtype, q: torch.dtype) -> bool:
    """Whether a product needs the digits of float32 in both: three products of tf32 halves.

    Of a p in float32 beside a q in bfloat16, which a bfloat16 model hands over, p alone is split: into bfloat16 thirds.
    """
    return q == torch.float32 or (p != q and q != torch.bfloat16)


def needs_digits(q: torch.dtype) -> bool:
    """Whether q can lie closer to a subspace than a difference of float32 norms can tell."""
    return q != torch.bfloat16


@dataclass(frozen=True)
class Tiles:
    """How a kernel is compiled."""

    rows: int  # of the gradient
    basis: int  # columns of U
    tokens: int
    columns: int  # of q
    warps: int
    stages: int  # blocks of tokens in flight

    def shared_memory(self, p: torch.dtype, q: torch.dtype, second_pass: bool = False) -> int:
        """Upper bound of what a kernel takes, in bytes.

        Blocks in flight, and the operands of the float32 products (V and a tile; then the turned tile and U, or in the
        second pass C and Uᵀ), each in the two halves that a product of three tf32 products makes of it, as if all were
        alive at once.
        """
        in_flight = self.stages * self.tokens * (self.rows * p.itemsize + self.columns * q.itemsize)
        turning = self.rows * (self.rows + self.columns)
        projecting = (self.rows + self.basis) * self.columns
        outside = self.basis * (self.rows + self.columns)
        return in_flight + 2 * _FLOAT * (turning + (outside if second_pass else projecting))


@cache
def tiles(r: int, d: int, k: int, p: torch.dtype, q: torch.dtype, chip: Chip, second_pass: bool = False) -> Tiles:
    """The widest tiles whose accumulators and operands stay in registers; tests/codegen has the compiler's word on it.

    Args:
        r, d, k: sizes of a site; k = 0 where there is no basis.
        p, q: the operands' dtypes.
        chip: where it will run.
        second_pass: for the kernel that holds C, U and a tile at once; it fits wherever the first pass does.

    Raises:
        ValueError: the chip has too little shared memory for the smallest tiles.
    """
    rows = min(padded(r), MOST_ROWS_A_PROGRAM)
    narrow = rows > 16 or second_pass
    columns = min(32 if narrow else 64, padded(d))
    basis = min(16 if second_pass else 64, padded(k))
    wide, splits = widens(p, q), p != q
    tokens = 16 if wide else (32 if narrow else 64) // (2 if splits else 1)
    warps = 8 if second_pass or wide or splits else 4
    for stages in (3, 2, 1):
        found = Tiles(rows, basis, tokens, columns, warps, stages)
        refused = chip.refuses(found.shared_memory(p, q, second_pass))
        if refused is None:
            return found
    raise ValueError(refused)


GGN_PROGRAMS_A_MULTIPROCESSOR = 2
"""That its registers hold, of either kernel of `ggn_project`."""


@dataclass(frozen=True)
class StreamTiles:
    """How the kernel of `ggn_project` that streams the bases is compiled."""

    rows: int  # of the gradient
    bases: int
    chunks: int  # of so many bases, one after the other
    tokens: int
    columns: int  # of q
    warps: int
    stages: int  # blocks of tokens in flight


@dataclass(frozen=True)
class ProductTiles:
    """How the kernel of `ggn_project` that multiplies gradients is compiled."""

    segments: int
    bases: int
    columns: int  # of the gradients as vectors
    warps: int
    stages: int  # blocks of columns in flight


def takes_gradients(segments: int, q: torch.dtype) -> bool:
    """Whether `ggn_project` writes the gradients, and multiplies many at once."""
    return segments > MOST_SEGMENTS_STREAMED and not needs_digits(q)


def stream_tiles(d: int, k: int, p: torch.dtype, q: torch.dtype) -> StreamTiles:
    """One segment a program: two programs on each multiprocessor, with 16 KiB of the bases under way for each."""
    chunks = min(8, 1 << (max(1, -(-k // 8)) - 1).bit_length())  # each program forms its tile of the gradient anew
    return StreamTiles(16, 8, chunks, 16 if widens(p, q) else 32, min(32, padded(d)), 8, 3)


def product_tiles(k: int) -> ProductTiles:
    """No sum in a matrix unit is longer than 32 columns of each third."""
    return ProductTiles(32, min(128, padded(k)), 32, 8, 3)


def ggn_splits(programs: int, tiles: int, chip: Chip) -> tuple[int, int]:
    """Column tiles that one program of `ggn_project` walks, and how many programs share all of them.

    So many are resident at once, unless each column tile has more than that: what is stored between the kernels,
    a tile of products for each program, is no more than the chip holds in its registers.
    """
    per_program = -(-tiles // max(1, GGN_PROGRAMS_A_MULTIPROCESSOR * chip.multiprocessors // programs))
    return per_program, -(-tiles // per_program)
