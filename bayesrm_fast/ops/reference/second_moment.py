"""`out += QᵀQ`, or `out += Qᵀ(QΩ)`."""

import torch
from torch import Tensor

COLUMNS = 128
"""Of a block: QᵀQ is symmetric, and what lies under its diagonal blocks is copied and not computed again."""


def second_moment(q: Tensor, out: Tensor, omega: Tensor | None = None) -> Tensor:
    q = q.to(torch.promote_types(q.dtype, torch.float32))
    if omega is not None:
        return out.add_(q.T @ (q @ omega.to(q.dtype)))
    for start in range(0, q.shape[1], COLUMNS):
        stop = min(start + COLUMNS, q.shape[1])
        upper = q[:, :stop].T @ q[:, start:stop]
        out[:stop, start:stop] += upper
        out[start:stop, :start] += upper[:start].T
    return out
