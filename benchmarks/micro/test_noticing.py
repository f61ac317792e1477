"""Noticing that a model has changed since its posterior was fitted, which every score does first."""

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bayesrm_fast import BayesianRewardModel
from benchmarks.baselines import plain_forward


@pytest.mark.parametrize("what", ["check", "plain forward"])
def test_noticing(benchmark: BenchmarkFixture, model_folder: Path, what: str) -> None:
    """Of a tiny model, beside the plain forward of one row of 8 tokens."""
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    batch = rm.collator(rm.tokenize(["a b c d"], ["e f g h"])).model_inputs()
    benchmark(rm.check_unchanged if what == "check" else lambda: plain_forward(rm.model, [batch]))
