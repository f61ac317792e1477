"""Launches csrc/cpu/segment_outer.h."""

import torch
from torch import Tensor

from bayesrm_fast.ops.cpu.binding import Segments, compiled


def segment_outer(p: Tensor, q: Tensor, offsets: Tensor) -> Tensor:
    """As `bayesrm_fast.ops.segment_outer`."""
    segments = Segments(p, q, offsets)
    gradients = torch.empty((segments.count, segments.r, segments.d), dtype=torch.float32, device="cpu")
    compiled.segment_outer(*segments.arguments(), gradients.data_ptr(), torch.get_num_threads())
    return gradients
