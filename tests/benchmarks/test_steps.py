"""The quick run of the benchmark of steps."""

import json

import pytest
from quick_run import quick_run

from benchmarks.data import data_folder


@pytest.mark.skipif(data_folder() is None, reason="the real data is not here: BAYESRM_DATA names no folder")
def test_steps_quick(tmp_path):
    quick_run("steps", tmp_path)
    (found,) = json.loads((tmp_path / "steps-quick.json").read_text())["by_seed"]
    assert found["steps"] > 0
    assert found["labels"]["MAP"]["accuracy"] == found["labels"]["posterior"]["accuracy"]
    assert len(found["best_of_n"]) == 2 + 4 * 4
