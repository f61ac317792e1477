"""The quick run of the benchmark of the operations."""

import json

import pytest
from quick_run import quick_run

from bayesrm_fast.ops.cpu import unavailable


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_kernels_quick(tmp_path):
    quick_run("kernels", tmp_path)
    results = json.loads((tmp_path / "kernels-cpu-quick.json").read_text())
    assert {tuple(row["dtypes"]) for row in results["kron_variance"]} == {("float32",) * 2, ("bfloat16",) * 2}
    assert all(second > 0 for row in results["kron_variance"] for second in row["seconds"].values())
    assert {row["bases"] for row in results["ggn_project"]} == {"float32", "bfloat16"}
    assert set(results["scoring"]["share"]) == {"kfac", "ggn"}
