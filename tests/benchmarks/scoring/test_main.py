"""Quick runs of the parts of the benchmark of scoring."""

import json

import pytest
from quick_run import quick_run

OURS = "ours, batch of 8"


@pytest.mark.parametrize(
    "part", ["shapes", "structures", "one_row", "dtypes", "virtual", "prompts", "shared_backward", "fit"]
)
def test_scoring_quick(tmp_path, part):
    quick_run("scoring", tmp_path, "--part", part)
    results = json.loads((tmp_path / "scoring-quick.json").read_text())["parts"][part]
    if part == "prompts":
        assert all(results[name]["largest_difference"] < 1e-5 for name in results if name != "machine")
    if part == "shapes":
        shape = results["hidden 64"]
        rows = shape["formulations"]
        assert all("seconds" in rows[name] or "failed" in rows[name].get("memory", {}) for name in rows if name != OURS)
        assert rows[OURS]["memory"]["peak_bytes"] >= 0
        # Without its factor of two a variance would be off by up to one half.
        assert shape["agreement_with_laplace_torch"]["variance_relative"] < 1e-3
