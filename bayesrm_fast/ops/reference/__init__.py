"""The operations in plain torch, written to be read beside the formula. They serve every device and dtype."""

from torch import Tensor

from bayesrm_fast.ops.reference.kron_project import kron_project
from bayesrm_fast.ops.reference.kron_variance import kron_variance
from bayesrm_fast.ops.reference.second_moment import second_moment
from bayesrm_fast.ops.reference.segment_outer import segment_outer

__all__ = ["kron_project", "kron_variance", "refuses", "second_moment", "segment_outer", "unavailable"]


def unavailable() -> None:
    """Never."""


def refuses(operation: str, tensors: tuple[Tensor, ...]) -> None:
    """Nothing."""
