"""Memory of a stream, whatever its length."""

from typing import Any

from benchmarks.memory import peak_of


def memory_part(quick: bool) -> dict[str, Any]:
    """Peak memory of a stream of many rows over that of few."""
    peaks = {n: peak_of("benchmarks.stream_memory", str(n), "128", "2") for n in ((8, 64) if quick else (64, 4096))}
    few, many = (peak["before_bytes"] + peak["peak_bytes"] for peak in peaks.values())
    return {"rows": {str(n): peak for n, peak in peaks.items()}, "ratio": many / few}
