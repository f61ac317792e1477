"""The operations on `(p, q, offsets)` that have kernels of their own."""

from bayesrm_fast.ops.ggn_project import ggn_project
from bayesrm_fast.ops.kron_project import kron_project
from bayesrm_fast.ops.kron_variance import kron_variance
from bayesrm_fast.ops.segment_outer import segment_outer

__all__ = ["ggn_project", "kron_project", "kron_variance", "segment_outer"]
