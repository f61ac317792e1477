"""Forward and backward pass of a tiny Llama whose LoRA layers are tapped."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bayesrm_fast.model.passes import Passes
from benchmarks.baselines import empty_pass
from benchmarks.shapes import LlamaShape, passes_of, random_rows


@pytest.fixture(scope="module")
def passes() -> Passes:
    """Passes over the tiny Llama."""
    return passes_of(LlamaShape(hidden=128, layers=2).model(), batch_tokens=4096)


@pytest.mark.parametrize("gradients_alone", [True, False], ids=["gradients-alone", "every-token"])
def test_taps(benchmark: BenchmarkFixture, passes: Passes, gradients_alone: bool) -> None:
    """One batch of 16 rows of 64 tokens, whose consumer does nothing."""
    benchmark(empty_pass, passes, random_rows([64] * 16), gradients_alone=gradients_alone)
