"""The part for GPUs, on a CPU."""

from benchmarks.scoring.on_gpu import gpu_part


def test_the_gpu_part_runs(monkeypatch):
    """On small shapes on a CPU: what it measures there says nothing."""
    results = gpu_part(True, "cpu")
    assert 1 <= results["small"]["variances"] <= 8
    assert set(results["small"]["formulations"]) > {"ours, lazy best of n", "plain forward of whole rows"}
