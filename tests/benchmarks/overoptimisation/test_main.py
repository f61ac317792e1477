"""The quick run of the benchmark of over-optimisation."""

import json

import pytest
from quick_run import quick_run

from benchmarks.data import data_folder
from benchmarks.overoptimisation.tasks import HUMANEVAL

folder = data_folder()


@pytest.mark.skipif(
    folder is None or not (folder / HUMANEVAL).is_file(), reason=f"{HUMANEVAL} is not here: BAYESRM_DATA"
)
def test_overoptimisation_quick(tmp_path):
    pytest.importorskip("trl", reason="the extra `train` is not installed")
    quick_run("overoptimisation", tmp_path, "--work", tmp_path / "work")
    results = json.loads((tmp_path / "overoptimisation-quick-noise0.25.json").read_text())
    assert (tmp_path / "overoptimisation-quick-noise0.25.png").stat().st_size > 10_000
    rows = results["rows"]
    oracle = rows["oracle"]["gold"]
    assert oracle == sorted(oracle)
    for row in rows.values():
        # Of one candidate every rule picks that one.
        assert row["gold"][0] == pytest.approx(oracle[0], abs=2e-4)  # of rounded figures
        assert row["gold"][-1] <= oracle[-1] + 2e-4
    # The pairs are fewer than ggn's vectors: it is the exact posterior, but for the rounding of its bases.
    assert rows["ggn, relative std, k = 1, λ by evidence"]["gold"] == pytest.approx(
        rows["exact, relative std, k = 1, λ by evidence"]["gold"], abs=0.02
    )
