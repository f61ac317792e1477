"""The compiled module, where there is one, and what every call hands over: addresses, sizes and dtype codes."""

import torch
from torch import Tensor

from bayesrm_fast.ops.compiled import compiled_part

compiled, missing = compiled_part("_cpu", "a C++ compiler")
"""The module, None where it is not there, and then why."""

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
BASES_DTYPES = DTYPES | {torch.int8: 2}
"""What `ggn_project` reads bases in."""


class Segments:
    """Holds `p`, `q` and `offsets` contiguous for as long as a call uses their addresses."""

    def __init__(self, p: Tensor, q: Tensor, offsets: Tensor) -> None:  # (T, r), (T, d), (N + 1,)
        self.held = (p.contiguous(), q.contiguous(), offsets.contiguous())
        self.count, self.r, self.d = offsets.shape[0] - 1, p.shape[1], q.shape[1]

    def arguments(self) -> tuple[int, ...]:
        """In the order of csrc/cpu/bind.cpp."""
        p, q, offsets = self.held
        addresses = (p.data_ptr(), q.data_ptr(), offsets.data_ptr())
        return (*addresses, self.count, self.r, self.d, DTYPES[p.dtype], DTYPES[q.dtype])


class Basis:
    """Holds V and the transposed U in float32; a U stored by columns is not copied."""

    def __init__(self, basis_p: Tensor, basis_q: Tensor) -> None:  # (r, r), (d, k)
        self.held = (basis_p.float().contiguous(), basis_q.float().T.contiguous())
        self.k = basis_q.shape[1]

    def arguments(self) -> tuple[int, int, int]:
        """In the order of csrc/cpu/bind.cpp."""
        return (self.held[0].data_ptr(), self.held[1].data_ptr(), self.k)
