"""The quick run of the benchmark of calibrated probabilities."""

import json

import pytest
from quick_run import quick_run

from benchmarks.data import data_folder


@pytest.mark.skipif(data_folder() is None, reason="the real data is not here: BAYESRM_DATA names no folder")
def test_calibration_quick(tmp_path):
    pytest.importorskip("trl", reason="the extra `train` is not installed")
    quick_run("calibration", tmp_path)
    rows = json.loads((tmp_path / "calibration-quick.json").read_text())["rows"]
    assert len(rows) == 10
    # A probability moves towards a half by its variance: no choice between the two changes.
    assert len({row["accuracy"] for row in rows.values()}) == 1
