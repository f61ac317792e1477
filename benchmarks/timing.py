"""Medians of formulations that take turns, and what a device can do at most."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def medians(
    formulations: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: str = "cpu",
    patience: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each, one call of each in turn, so that a machine that slows down slows all of them."""
    timed = in_turns(formulations, rounds, device, patience, clock)
    return {name: one["seconds"] for name, one in timed.items()}


def in_turns(
    formulations: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: str = "cpu",
    patience: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, Any]]:
    """`seconds` (the median), `rounds` and `spread` (largest over smallest) of each, one call of each in turn.

    Args:
        formulations: what to time.
        rounds: calls of each, after one that does not count.
        device: cpu or cuda.
        patience: seconds that one formulation may take in all; one that is slower has fewer rounds, and says so.
        clock: of a CPU.
    """
    for run in formulations.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in formulations}
    for _ in range(rounds):
        for name, run in formulations.items():
            if sum(seconds[name]) <= patience:
                seconds[name].append(_seconds_on_gpu(run) if device == "cuda" else _seconds_by(clock, run))
    return {
        name: {"seconds": statistics.median(times), "rounds": len(times), "spread": max(times) / min(times)}
        for name, times in seconds.items()
    }


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch with one thread, whose processor time other processes hardly change."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def count_plain_forwards(timed: dict[str, dict[str, Any]], plain: str) -> None:
    """Give every formulation `plain_forwards`: its seconds over those of the formulation named `plain`."""
    for formulation in timed.values():
        formulation["plain_forwards"] = formulation["seconds"] / timed[plain]["seconds"]


def _seconds_by(clock: Callable[[], float], run: Callable[[], Any]) -> float:
    start = clock()
    run()
    return clock() - start


def _seconds_on_gpu(run: Callable[[], Any]) -> float:
    # Writing this takes a millisecond, in which the host asks for all that a formulation launches, and leaves nothing
    # of the inputs in the second-level cache.
    written = torch.empty(2**30, dtype=torch.int8, device="cuda")
    for _ in range(4):
        written.zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def ceilings(rounds: int) -> dict[str, float]:
    """Bytes a second of a large copy (read and written), and operations a second of a large bfloat16 product."""
    source = torch.randn(2**29, device="cuda").bfloat16()
    target = torch.empty_like(source)
    left, right = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    seconds = medians({"copy": lambda: target.copy_(source), "product": lambda: left @ right}, rounds, "cuda")
    return {
        "copy_bytes_per_s": 2 * source.nbytes / seconds["copy"],
        "bfloat16_flops_per_s": 2 * 8192**3 / seconds["product"],
    }
