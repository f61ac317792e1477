"""Long feature vectors in few numbers that keep their inner products, to an error that is measured."""

import zlib
from functools import partial

import torch
from torch import Tensor

WIDTH = 8192
"""m. An inner product errs by about `√(1/m)` of the two norms: 1.1 %."""


def feature_sketch(parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:  # (N, …) each -> (N, m), (N,)
    """`S x` and `‖x‖²` of N vectors that come in parts, S `[m, …]` with one random sign in every column.

    The count sketch: `E⟨Sx, Sy⟩ = ⟨x, y⟩`, with a variance of at most `(‖x‖²‖y‖² + ⟨x, y⟩²) / m` (Charikar, Chen,
    Farach-Colton, *Finding frequent items in data streams*, 2002; Weinberger et al., *Feature hashing for large scale
    multitask learning*, 2009). S follows from the parts' names alone, so that rows of other batches fit.

    Args:
        parts: by name, at least one; taken out one by one, since they are large.
    """
    like = next(iter(parts.values()))
    rows = like.new_zeros(len(like), WIDTH)
    squared_norms = torch.zeros(len(like), dtype=torch.float64, device=like.device)
    for name in list(parts):
        part = parts.pop(name)
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        numbers = part.shape[1]
        drawn = partial(torch.randint, size=(numbers,), generator=generator, dtype=torch.int64, device="cpu")
        columns = drawn(WIDTH).to(part.device)
        signs = (2 * drawn(2) - 1).to(part)
        rows.index_add_(1, columns, part * signs)
        squared_norms += torch.linalg.vecdot(part, part)
    return rows, squared_norms
