"""The quick run of the benchmark on rows of RewardBench."""

import json

import pytest
from quick_run import quick_run

from benchmarks.data import data_folder

pytestmark = pytest.mark.skipif(data_folder() is None, reason="the real data is not here: BAYESRM_DATA names no folder")


def test_rewardbench_quick(tmp_path):
    pytest.importorskip("trl", reason="the extra `train` is not installed")
    quick_run("rewardbench", tmp_path)
    results = json.loads((tmp_path / "rewardbench-quick.json").read_text())
    assert results["report"]["domains"]["in_domain"]["rows"] == results["scale"]["held_out_pairs"] == 8
    assert results["report"]["absent_sections"] == []
    assert "hh-harmless" in results["report"]["outside_of_sections"]
    assert (tmp_path / "rewardbench-quick.png").is_file()


def test_what_is_trained_on_is_not_tested_on():
    from benchmarks.rewardbench import FULL, hh_pairs, rewardbench_rows

    tested = {row["prompt"].strip() for row in rewardbench_rows(FULL)}
    parts = [{pair["prompt"].strip() for pair in part} for part in hh_pairs(FULL, tested)]
    assert [len(part) for part in parts[:2]] == [FULL.train_pairs, FULL.calibration_pairs]
    assert 150 < len(parts[2]) <= FULL.held_out_pairs
    assert len(set.union(tested, *parts)) == sum(map(len, parts)) + len(tested)
