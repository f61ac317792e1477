"""The benchmarks' quick runs."""

import json
import subprocess
import sys

import pytest
import torch
from formulas import almost_inside

from bayesrm_fast.ops import kron_variance
from bayesrm_fast.ops.cpu import unavailable
from benchmarks.data import ROOT, data_folder
from benchmarks.formulations import LOSES_DIGITS, PLAIN_TORCH, inputs, rectangles
from benchmarks.on_gpu import gpu_part

OURS = "ours, batch of 8"


@pytest.mark.skipif(data_folder() is None, reason="the real data is not here: BAYESRM_DATA names no folder")
def test_best_of_n_quick(tmp_path):
    pytest.importorskip("trl", reason="the extra `train` is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.best_of_n", "--quick", "--output", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
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


@pytest.mark.skipif(data_folder() is None, reason="the real data is not here: BAYESRM_DATA names no folder")
def test_fidelity_quick(tmp_path):
    """Loose bounds, so that a structure that went wrong shows."""
    pytest.importorskip("trl", reason="the extra `train` is not installed")
    command = [sys.executable, "-m", "benchmarks.fidelity", "--quick", "--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fidelity-quick.png").stat().st_size > 10_000
    (case,) = json.loads((tmp_path / "fidelity-quick.json").read_text())["cases"].values()

    def ratios(name):
        return [f["median_ratio"] for f in case["methods"][name]["figures"]]

    def correlations(name):
        return [f["spearman"] for f in case["methods"][name]["figures"]]

    # 60 pairs are fewer than 128: exact but for rounding, in bfloat16 that of the bases.
    assert ratios("ggn, 128") == pytest.approx([1.0] * 3, abs=1e-3)
    assert min(correlations("ggn, 128")) > 0.999
    assert ratios("ggn, 128, bfloat16") == pytest.approx([1.0] * 3, abs=0.05)
    assert all(1.0 <= ratio + 1e-6 < 1.3 for ratio in ratios("ggn, 32"))
    assert all(0.2 < ratio < 1.5 for name in ("kfac, full", "ekfac, 64") for ratio in ratios(name))
    assert min(correlations("ggn, 32")) > max(0.95, min(correlations("kfac, full")))


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_kernels_quick(tmp_path):
    command = [sys.executable, "-m", "benchmarks.kernels", "--quick", "--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "kernels-cpu-quick.json").read_text())
    assert {tuple(row["dtypes"]) for row in results["kron_variance"]} == {("float32",) * 2, ("bfloat16",) * 2}
    assert all(second > 0 for row in results["kron_variance"] for second in row["seconds"].values())
    assert set(results["scoring"]["share"]) == {"cpu", "reference"}


@pytest.mark.parametrize("part", ["shapes", "structures", "virtual", "prompts", "fit"])
def test_scoring_quick(tmp_path, part):
    command = [sys.executable, "-m", "benchmarks.scoring", "--quick", "--part", part, "--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
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


def test_the_gpu_part_runs(monkeypatch):
    """On small shapes on a CPU: what it measures there says nothing."""
    results = gpu_part(True, "cpu")
    assert 1 <= results["small"]["variances"] <= 8
    assert set(results["small"]["formulations"]) > {"ours, lazy best of n", "plain forward of whole rows"}


@pytest.mark.parametrize("lengths", [[5, 0, 12], [6, 6, 6]], ids=["ragged", "even"])
@pytest.mark.parametrize("name", PLAIN_TORCH)
def test_the_baselines_of_the_kernels_are_right(name, lengths):
    arguments = p, q, _, *constants = inputs(lengths, 3, 20, 4, torch.float32, torch.float32)
    found = PLAIN_TORCH[name](*rectangles(p, q, lengths), *constants)
    torch.testing.assert_close(found, kron_variance(*arguments), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", PLAIN_TORCH)
def test_a_baseline_that_loses_digits_is_no_rival(name):
    (p, q, offsets, *constants), exact = almost_inside(torch.float32)
    found = PLAIN_TORCH[name](*rectangles(p, q, offsets.diff().tolist()), *constants).item()
    assert (abs(found / exact - 1) > 1e-4) == (name in LOSES_DIGITS[torch.float32])
