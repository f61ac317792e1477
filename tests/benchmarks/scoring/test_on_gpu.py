"""The parts for GPUs, on a CPU."""

from benchmarks.scoring.on_gpu import SMALL, gpu_part


def test_a_part_for_a_gpu_runs():
    """On small shapes on a CPU: what it measures there says nothing."""
    results = gpu_part(SMALL, "cpu")
    assert 1 <= results["variances"] <= 8
    assert set(results["formulations"]) > {"ours, lazy best of n by ggn", "plain forward of whole rows"}
