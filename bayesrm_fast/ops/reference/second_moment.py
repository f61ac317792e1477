"""`out += QᵀQ`, or `out += Qᵀ(QΩ)`."""

import torch
from torch import Tensor


def second_moment(q: Tensor, out: Tensor, omega: Tensor | None = None) -> Tensor:
    q = q.to(torch.promote_types(q.dtype, torch.float32))
    return out.add_(q.T @ (q if omega is None else q @ omega.to(q.dtype)))
