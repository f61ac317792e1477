"""How the CUDA kernels are launched: pure functions of (shape, chip), so that they are tested without a GPU."""

from dataclasses import dataclass
from math import ceil
from typing import Literal

from bayesrm_fast.ops.chips import Chip, padded, tiles_per_program

MOST_R, MOST_K = 64, 64
"""That a kernel is compiled for."""

TILE_COLUMNS = 256
"""As in csrc/cuda/tile.cuh."""

BOX_COLUMNS = 64
"""As `kColumnsPerBox` in csrc/cuda/tile.cuh: the tiles of `ggn_project`."""

BLOCKS_A_MULTIPROCESSOR = 2
"""Of `ggn_project`, as csrc/cuda/ggn.cuh bounds its registers."""

ITEMS_A_MULTIPROCESSOR = (2, 16)
"""Of the sm90 kernel: no fewer, so that all have work; more would only be sums to store."""

MOST_PARTS = 1 / 8
"""Of q's bytes: what the sm90 kernel stores of sums on the way, as long as every multiprocessor has work."""


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched; csrc/cuda/kernels.h has the same but for what only the device knows."""

    kernel: Literal["sm80", "sm90"]
    rows: int  # r padded
    basis: int  # k padded
    groups: int  # that a segment's column tiles are shared out to
    blocks: int  # one for each group of each segment; of the sm90 kernel no more than are resident, each with several


def compiled_sizes(r: int, k: int) -> tuple[int, int]:
    """Rows and columns of U that the kernel for r and k is compiled for."""
    return padded(r), 16 if k <= 16 else 64


def launch(r: int, d: int, k: int, segments: int, tokens: int, chip: Chip, sm90: bool) -> Launch:
    """Which kernel, and how many blocks share a segment.

    Args:
        r, d, k: sizes of a site; at most `MOST_R` and `MOST_K`.
        segments, tokens: N, at least 1, and T; only how the work is shared out depends on them.
        chip: where it will run.
        sm90: whether the sm90 kernel was built, and runs there.
    """
    rows, basis = compiled_sizes(r, k)
    columns = -(-d // TILE_COLUMNS)
    if not sm90:
        groups = -(-columns // tiles_per_program(segments, TILE_COLUMNS, d, chip))
        return Launch("sm80", rows, basis, groups, segments * groups)
    tiles = segments * columns
    most, least = (max(1, tiles // (items * chip.multiprocessors)) for items in ITEMS_A_MULTIPROCESSOR)
    part_bytes, bytes_of_tile = 4 * rows * (rows + basis), 2 * TILE_COLUMNS * max(1, tokens // segments)
    of_item = min(most, max(least, ceil(part_bytes / (MOST_PARTS * bytes_of_tile))))
    groups = -(-columns // of_item)
    return Launch("sm90", rows, basis, groups, min(segments * groups, chip.multiprocessors))


def bases_of_block(d: int, k: int, segments: int, chip: Chip) -> int:
    """How many bases a block of `ggn_project` multiplies with its tile of the gradient, which every block forms anew.

    As many as leave each multiprocessor its blocks, in eights, which are its warps.
    """
    tiles = segments * -(-d // BOX_COLUMNS)
    for bases in (64, 32, 16):
        if tiles * -(-k // bases) >= BLOCKS_A_MULTIPROCESSOR * chip.multiprocessors:
            return bases
    return 8
