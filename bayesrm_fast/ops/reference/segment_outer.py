"""`G_n = Σ_{t in segment n} p_t q_tᵀ`."""

import torch
from torch import Tensor


def segment_outer(p: Tensor, q: Tensor, offsets: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(p.dtype, q.dtype), torch.float32)
    p, q = p.to(dtype), q.to(dtype)
    bounds = offsets.tolist()
    gradients = q.new_zeros(len(bounds) - 1, p.shape[1], q.shape[1])
    for n, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        torch.mm(p[start:stop].T, q[start:stop], out=gradients[n])
    return gradients
