"""The GPUs that kernels are cut for, and what the block sizes of all of them rest on."""

from dataclasses import dataclass
from functools import cache

import torch

PROGRAMS_A_MULTIPROCESSOR = 4
"""Enough for one program to load while another computes, and for a ragged batch to even out."""

MOST_SEGMENTS_STREAMED = 3
"""For each of which `ggn_project` reads the bases; more are multiplied with them together."""


@dataclass(frozen=True)
class Chip:
    """What of a GPU decides block sizes."""

    capability: int  # 80, 90
    multiprocessors: int
    shared_memory: int  # bytes that one block may have

    def refuses(self, shared_memory: int) -> str | None:
        """Why no block with so many bytes of shared memory runs here; None where it does."""
        if shared_memory <= self.shared_memory:
            return None
        need, has = -(-shared_memory // 1024), self.shared_memory // 1024
        return f"for this r and k it needs {need} KiB of shared memory, not {has}"


A100 = Chip(80, 108, 163 * 1024)
H100 = Chip(90, 132, 227 * 1024)


@cache
def chip_of(device: torch.device) -> Chip:
    """The chip of a device; for a CPU, where only the interpreter runs, an H100."""
    if device.type != "cuda":
        return H100
    properties = torch.cuda.get_device_properties(device)
    capability = 10 * properties.major + properties.minor
    return Chip(capability, properties.multi_processor_count, properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]


def padded(size: int) -> int:
    """Next power of two, and no less than the 16 that a matrix unit takes."""
    return max(16, 1 << (size - 1).bit_length())


def tiles_per_program(segments: int, columns: int, d: int, chip: Chip) -> int:
    """Column tiles that one program walks: as many as leave every multiprocessor its programs."""
    needed = PROGRAMS_A_MULTIPROCESSOR * chip.multiprocessors
    return max(1, segments * -(-d // columns) // needed)
