"""The quick run of the benchmark of the operations."""

import json

import pytest
from quick_run import quick_run

from bayesrm_fast.ops.cpu import instruction_set, unavailable


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_kernels_quick(tmp_path):
    path = tmp_path / "kernels-cpu-quick.json"
    path.write_text(json.dumps({"scoring, of another processor": "kept"}))
    quick_run("kernels", tmp_path)
    results = json.loads(path.read_text())
    assert results["scoring, of another processor"] == "kept"
    parts = {name: results[f"{name}, {instruction_set()}"] for name in ("kron_variance", "ggn_project", "scoring")}
    assert {tuple(row["dtypes"]) for row in parts["kron_variance"]["rows"]} == {("float32",) * 2, ("bfloat16",) * 2}
    assert all(second > 0 for row in parts["kron_variance"]["rows"] for second in row["seconds"].values())
    assert {row["bases"] for row in parts["ggn_project"]["rows"]} == {"float32", "bfloat16"}
    assert set(parts["scoring"]["share"]) == {"kfac", "ggn"}
