"""The quick run of the benchmark of fidelity."""

import json

import pytest
from quick_run import quick_run

from benchmarks.data import data_folder


@pytest.mark.skipif(data_folder() is None, reason="the real data is not here: BAYESRM_DATA names no folder")
def test_fidelity_quick(tmp_path):
    """Loose bounds, so that a structure that went wrong shows."""
    pytest.importorskip("trl", reason="the extra `train` is not installed")
    quick_run("fidelity", tmp_path)
    assert (tmp_path / "fidelity-quick.png").stat().st_size > 10_000
    (case,) = json.loads((tmp_path / "fidelity-quick.json").read_text())["cases"].values()

    def ratios(name):
        return [f["median_ratio"] for f in case["methods"][name]["figures"]]

    def correlations(name):
        return [f["spearman"] for f in case["methods"][name]["figures"]]

    # 60 pairs are fewer than 128: exact but for rounding, in bfloat16 and int8 that of the bases.
    assert ratios("ggn, 128") == pytest.approx([1.0] * 3, abs=1e-3)
    assert min(correlations("ggn, 128")) > 0.999
    for dtype in ("bfloat16", "int8"):
        assert ratios(f"ggn, 128, {dtype}") == pytest.approx([1.0] * 3, abs=0.05)
    assert all(1.0 <= ratio + 1e-6 < 1.3 for ratio in ratios("ggn, 32"))
    assert all(0.2 < ratio < 1.5 for name in ("kfac, full", "ekfac, 64") for ratio in ratios(name))
    assert min(correlations("ggn, 32")) > max(0.95, min(correlations("kfac, full")))
