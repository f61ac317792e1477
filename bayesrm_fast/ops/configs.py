"""Block sizes of the GPU kernels: pure functions of (shape, dtype, chip), so that they are tested without a GPU.

No count of tokens or segments enters what a kernel is compiled for: another batch never compiles anything.
"""

from dataclasses import dataclass

MOST_ROWS = 64
"""Of a gradient in one Triton program; a site with more rows takes turns."""

PROGRAMS_A_MULTIPROCESSOR = 4
"""Enough for one program to load while another computes, and for a ragged batch to even out."""

_FLOAT = 4


@dataclass(frozen=True)
class Chip:
    """What of a GPU decides block sizes."""

    capability: int  # 80, 90
    multiprocessors: int
    shared_memory: int  # bytes that one program may have


A100 = Chip(80, 108, 163 * 1024)
H100 = Chip(90, 132, 227 * 1024)


@dataclass(frozen=True)
class Tiles:
    """How a kernel is compiled."""

    rows: int  # of the gradient
    basis: int  # columns of U
    tokens: int
    columns: int  # of q
    warps: int
    stages: int  # blocks of tokens in flight

    def shared_memory(self, itemsize: int) -> int:
        """Upper bound of what the kernels of `kron_project` take, in bytes.

        Blocks in flight, and the operands of the float32 products (V and a tile; the turned tile and U; C and Uᵀ), each
        in the two halves that a product of three tf32 products makes of it, as if all were alive at once.
        """
        in_flight = self.stages * self.tokens * (self.rows + self.columns) * itemsize
        turning = self.rows * (self.rows + self.columns)
        projecting = (self.rows + self.basis) * self.columns
        outside = self.basis * (self.rows + self.columns)
        return in_flight + 2 * _FLOAT * (turning + projecting + outside)


def tiles(r: int, d: int, k: int, itemsize: int, chip: Chip, second_pass: bool = False) -> Tiles:
    """The widest tiles whose accumulators and operands stay in registers; tests/codegen has the compiler's word on it.

    Args:
        r, d, k: sizes of a site; k = 0 where there is no basis.
        itemsize: bytes of an element of q.
        chip: where it will run.
        second_pass: for the kernel that holds C, U and a tile at once.

    Raises:
        ValueError: the chip has too little shared memory for the smallest tiles.
    """
    rows = min(padded(r), MOST_ROWS)
    narrow = rows > 16 or second_pass
    columns = min(32 if narrow else 64, padded(d))
    basis = min(16 if second_pass else 64, padded(k))
    tokens = 16 if itemsize == 4 else 32 if narrow else 64
    warps = 8 if second_pass or itemsize == 4 else 4
    for stages in (3, 2, 1):
        found = Tiles(rows, basis, tokens, columns, warps, stages)
        if found.shared_memory(itemsize) <= chip.shared_memory:
            return found
    raise ValueError(f"no tiles fit {chip}")


def tiles_per_program(segments: int, columns: int, d: int, chip: Chip) -> int:
    """Column tiles that one program walks: as many as leave every multiprocessor its programs."""
    needed = PROGRAMS_A_MULTIPROCESSOR * chip.multiprocessors
    return max(1, segments * -(-d // columns) // needed)


CUDA_COLUMNS = 256
"""Of a tile in csrc/cuda/tile.cuh."""

MOST_BLOCKS_A_CLUSTER = 8
"""That every chip with clusters can hold."""

MOST_IDLE = 0.15
"""Of a cluster, while its last blocks have no column tile."""


@dataclass(frozen=True)
class Launch:
    """How a CUDA kernel is launched; csrc/cuda/kernels.h has the same but for what only the device knows."""

    kernel: str  # "hopper" or "portable"
    rows: int  # r padded
    basis: int  # k padded
    blocks: int  # that share a segment's column tiles: on Hopper a cluster


def launch(r: int, d: int, k: int, segments: int, chip: Chip, hopper: bool) -> Launch:
    """Which CUDA kernel, and how many blocks share a segment.

    Args:
        r, d, k: sizes of a site; r and k at most 64.
        segments: N; only how many blocks there are depends on it.
        chip: where it will run.
        hopper: whether the Hopper kernel was built, and runs there.
    """
    rows, basis, columns = padded(r), 16 if k <= 16 else 64, -(-d // CUDA_COLUMNS)
    if hopper:
        blocks = MOST_BLOCKS_A_CLUSTER
        while columns < blocks * -(-columns // blocks) * (1 - MOST_IDLE):
            blocks //= 2
        # With fewer the clusters would leave most of the chip idle, and the portable kernel splits a segment further.
        if 2 * segments * blocks >= chip.multiprocessors:
            return Launch("hopper", rows, basis, blocks)
    return Launch("portable", rows, basis, -(-columns // tiles_per_program(segments, CUDA_COLUMNS, d, chip)))


def padded(size: int) -> int:
    """Next power of two, and no less than the 16 that a matrix unit takes."""
    return max(16, 1 << (size - 1).bit_length())
