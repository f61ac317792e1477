"""What a person waits for before anything is done; `import torch` is beside it to compare with."""

import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

STARTS = {
    "import torch": ["-c", "import torch"],
    "import bayesrm_fast": ["-c", "import bayesrm_fast"],
    "the model's class": ["-c", "from bayesrm_fast import BayesianRewardModel"],
    "bayesrm --help": ["-m", "bayesrm_fast", "--help"],
    "bayesrm info": ["-m", "bayesrm_fast", "info"],
}


@pytest.mark.parametrize("what", STARTS)
def test_start(benchmark: BenchmarkFixture, what: str) -> None:
    """Seconds of wall time of a process that does nothing else."""
    command = [sys.executable, *STARTS[what]]
    benchmark.pedantic(subprocess.run, (command,), {"check": True, "capture_output": True}, rounds=5)
