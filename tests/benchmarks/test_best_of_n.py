"""The quick run of the benchmark of best-of-n."""

import json

import pytest
from quick_run import quick_run

from benchmarks.data import data_folder


@pytest.mark.skipif(data_folder() is None, reason="the real data is not here: BAYESRM_DATA names no folder")
def test_best_of_n_quick(tmp_path):
    pytest.importorskip("trl", reason="the extra `train` is not installed")
    quick_run("best_of_n", tmp_path)
    results = json.loads((tmp_path / "best_of_n-quick.json").read_text())
    assert (tmp_path / "best_of_n-quick.png").stat().st_size > 10_000
    assert results["gain_over_map_with_distractors"]
    for key in ("without_distractors", "with_distractors"):
        oracle = [row["gold"] for row in results[key]["gold oracle"]]
        assert oracle == sorted(oracle)
        for rows in results[key].values():
            # Of one candidate every rule picks that one.
            assert rows[0]["gold"] == pytest.approx(oracle[0], abs=2e-5)  # of rounded figures
            assert all(row["gold"] <= best + 2e-5 for row, best in zip(rows, oracle, strict=True))
