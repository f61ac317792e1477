"""Launches csrc/cpu/ggn_project.h."""

import torch
from torch import Tensor

from bayesrm_fast.ops.cpu.binding import BASES_DTYPES, Segments, compiled


def ggn_project(p: Tensor, q: Tensor, offsets: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """As `bayesrm_fast.ops.ggn_project`."""
    segments, bases = Segments(p, q, offsets), bases.contiguous()
    products = torch.empty((segments.count, bases.shape[0]), dtype=torch.float64, device="cpu")
    squared_norm = torch.empty(segments.count, dtype=torch.float64, device="cpu")
    stored = (bases.data_ptr(), BASES_DTYPES[bases.dtype], bases.shape[0])
    outputs = (products.data_ptr(), squared_norm.data_ptr())
    compiled.ggn_project(*segments.arguments(), *stored, *outputs, torch.get_num_threads())
    return products, squared_norm
