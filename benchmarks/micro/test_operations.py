"""Every operation, by every backend that serves CPU tensors here."""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bayesrm_fast import ops
from bayesrm_fast.ops.backends import PREFERENCE, refusal, use_backend
from benchmarks.formulations import inputs

ARGUMENTS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "kron_variance": inputs,
    "kron_project": lambda *shape: inputs(*shape)[:5],
    "ggn_project": lambda lengths, r, d, k, *dtypes: (*inputs(lengths, r, d, k, *dtypes)[:3], torch.randn(k, r, d)),
    "segment_outer": lambda *shape: inputs(*shape)[:3],
}
"""What makes an operation's arguments of a shape in `SHAPES`."""

SHAPES = {  # lengths of the segments, r, d, k, dtypes of p and q
    "1x128": ([128], 8, 4096, 64, torch.float32, torch.float32),
    "16x128": ([128] * 16, 16, 768, 64, torch.float32, torch.float32),
    "ragged": ([16, 512, 48, 300, 128, 77, 211, 33], 8, 384, 16, torch.bfloat16, torch.bfloat16),
}


@pytest.mark.parametrize("backend", PREFERENCE["cpu"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operation", ARGUMENTS)
def test_operation(benchmark: BenchmarkFixture, operation: str, shape: str, backend: str) -> None:
    """One call through the public face."""
    arguments = ARGUMENTS[operation](*SHAPES[shape])
    reason = refusal(backend, operation, arguments)
    if reason is not None:
        pytest.skip(reason)
    with use_backend(backend):
        benchmark(getattr(ops, operation), *arguments)
