"""The quick run of the benchmark of the operations."""

import json
import subprocess
import sys

import pytest

from bayesrm_fast.ops.cpu import unavailable
from benchmarks.data import ROOT


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_kernels_quick(tmp_path):
    command = [sys.executable, "-m", "benchmarks.kernels", "--quick", "--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "kernels-cpu-quick.json").read_text())
    assert {tuple(row["dtypes"]) for row in results["kron_variance"]} == {("float32",) * 2, ("bfloat16",) * 2}
    assert all(second > 0 for row in results["kron_variance"] for second in row["seconds"].values())
    assert set(results["scoring"]["share"]) == {"cpu", "reference"}
