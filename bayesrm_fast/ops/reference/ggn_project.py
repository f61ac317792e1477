"""`⟨G, b_k⟩` and `‖G‖²`, in float64."""

import torch
from torch import Tensor

from bayesrm_fast.ops.reference.segment_outer import segment_outer


def ggn_project(p: Tensor, q: Tensor, offsets: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    gradients = segment_outer(p, q, offsets).flatten(1).double()
    return gradients @ bases.flatten(1).double().T, torch.linalg.vecdot(gradients, gradients)
