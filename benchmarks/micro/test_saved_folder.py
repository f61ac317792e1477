"""What `save_pretrained` wrote, loaded again."""

from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from bayesrm_fast import BayesianRewardModel


def test_from_pretrained(benchmark: BenchmarkFixture, model_folder: Path) -> None:
    """A tiny model, its adapter and its posterior."""
    benchmark(BayesianRewardModel.from_pretrained, model_folder, device="cpu")
