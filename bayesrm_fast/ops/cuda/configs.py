"""How the CUDA kernels are launched: pure functions of (shape, chip), so that they are tested without a GPU."""

from dataclasses import dataclass
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

MOST_BLOCKS_A_CLUSTER = 8
"""That every chip with clusters can hold."""

MOST_IDLE = 0.15
"""Of a cluster, while its last blocks have no column tile."""


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched; csrc/cuda/kernels.h has the same but for what only the device knows."""

    kernel: Literal["sm80", "sm90"]
    rows: int  # r padded
    basis: int  # k padded
    blocks: int  # that share a segment's column tiles: of the sm90 kernel a cluster


def compiled_sizes(r: int, k: int) -> tuple[int, int]:
    """Rows and columns of U that the kernel for r and k is compiled for."""
    return padded(r), 16 if k <= 16 else 64


def launch(r: int, d: int, k: int, segments: int, chip: Chip, sm90: bool) -> Launch:
    """Which kernel, and how many blocks share a segment.

    Args:
        r, d, k: sizes of a site; at most `MOST_R` and `MOST_K`.
        segments: N; only how many blocks there are depends on it.
        chip: where it will run.
        sm90: whether the sm90 kernel was built, and runs there.
    """
    rows, basis = compiled_sizes(r, k)
    columns = -(-d // TILE_COLUMNS)
    if sm90:
        blocks = MOST_BLOCKS_A_CLUSTER
        while columns < blocks * -(-columns // blocks) * (1 - MOST_IDLE):
            blocks //= 2
        # With fewer the clusters would leave most of the chip idle, and the sm80 kernel splits a segment further.
        if 2 * segments * blocks >= chip.multiprocessors:
            return Launch("sm90", rows, basis, blocks)
    return Launch("sm80", rows, basis, -(-columns // tiles_per_program(segments, TILE_COLUMNS, d, chip)))


def bases_of_block(d: int, k: int, segments: int, chip: Chip) -> int:
    """How many bases a block of `ggn_project` multiplies with its tile of the gradient, which every block forms anew.

    As many as leave each multiprocessor its blocks, in eights, which are its warps.
    """
    tiles = segments * -(-d // BOX_COLUMNS)
    for bases in (64, 32, 16):
        if tiles * -(-k // bases) >= BLOCKS_A_MULTIPROCESSOR * chip.multiprocessors:
            return bases
    return 8
