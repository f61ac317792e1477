"""The benchmark of chosen labels: what it sums up, and its quick run."""

import json
import math

import pytest
from quick_run import quick_run

from benchmarks.active import QUICK, STRATEGIES, Round, Scale, summary
from benchmarks.data import data_folder


def test_gains_are_over_random_labels_and_prompts_count_once():
    scale = Scale(2, 1, 1, 2, 1, labels=(4,), max_length=8, epochs=1)
    right = {"random": [{"a": 0.5, "b": 0.5}, {"a": 1.0, "c": 0.0}], "uncertainty": [{"a": 0.5, "b": 1.0}] * 2}
    right["uncertainty"][1] = {"a": 1.0, "c": 1.0}
    right["information"] = right["random"]
    seeds = [{name: [Round(4, 3, shares[seed])] for name, shares in right.items()} for seed in range(2)]
    found = summary(seeds, scale)["strategies"]
    row = found["uncertainty"]["4"]
    assert row["by_seed"] == [0.75, 1.0]
    assert row["gain_over_random"] == pytest.approx((0.25 + 0.5) / 2)
    assert row["gain_standard_error_over_seeds"] == pytest.approx(0.125)
    # a gains 0 with either seed, b and c gain 0.5 and 1.
    assert row["gain_standard_error_over_prompts"] == pytest.approx(math.sqrt(0.25 / 3))
    assert found["information"]["4"]["gain_over_random"] == 0


@pytest.mark.skipif(data_folder() is None, reason="the real data is not here: BAYESRM_DATA names no folder")
def test_active_quick(tmp_path):
    pytest.importorskip("trl", reason="the extra `train` is not installed")
    quick_run("active", tmp_path)
    rows = json.loads((tmp_path / "active-quick.json").read_text())["strategies"]
    assert list(rows) == list(STRATEGIES)
    assert all(list(row) == [str(labels) for labels in QUICK.labels] for row in rows.values())
    # All begin with the same labels.
    assert len({row[str(QUICK.labels[0])]["accuracy"] for row in rows.values()}) == 1
    assert (tmp_path / "active-quick.png").stat().st_size > 0
