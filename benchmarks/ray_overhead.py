"""What Ray costs beside a local run: `bayesrm score` on the same file, locally and with one and two of Ray's workers.

`python -m benchmarks.ray_overhead [--rounds 3] [--output FILE]`: MiniLM with LoRA on a CPU, made texts of ragged
lengths, one thread a process. The outputs must have the same bytes. The processors' time says more than the clock where
a machine does other work. Ray listens on all addresses of the machine while it runs: `make ray` shows how to give it
loopback alone.
"""

import argparse
import contextlib
import ctypes
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from bayesrm_fast.text.files import write_rows
from benchmarks.engine import model, text
from benchmarks.machine import describe

PROMPTS, RESPONSES = 384, 2
ENGINES = {
    "local": [],
    "ray, 1 worker": ["--engine", "ray", "--workers", "1"],
    "ray, 2 workers": ["--engine", "ray", "--workers", "2"],
}
BECOME_SUBREAPER = 36
"""Of prctl(2): daemons whose parents have ended become this process's children, and their time is its children's."""


def seconds_of(engine: list[str], folder: Path) -> tuple[float, float]:
    """Of a whole command, by the clock and by the processors, with all processes that it starts."""
    output = folder / "scores.jsonl"
    command = [sys.executable, "-m", "bayesrm_fast", "score", "my-rm", "rows.jsonl", output.name, *engine]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - began
    with contextlib.suppress(ChildProcessError):  # which says that none is left
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    expected = folder / "local.jsonl"
    if not expected.exists():
        output.rename(expected)
    elif output.read_bytes() != expected.read_bytes():
        raise SystemExit(f"{' '.join(engine)} wrote other numbers than a local run")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(rounds: int, prompts: int = PROMPTS) -> dict[str, dict[str, dict[str, float]]]:
    """The spread of each engine's seconds over rounds in which they take turns."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model().save_pretrained(folder / "my-rm")
        lot = random.Random(2)
        rows = [
            {"prompt": text(lot, 20), "responses": [text(lot, 40) for _ in range(RESPONSES)]} for _ in range(prompts)
        ]
        write_rows(folder / "rows.jsonl", rows)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ENGINES}
        for _ in range(rounds):
            for name, engine in ENGINES.items():
                taken[name].append(seconds_of(engine, folder))
    measured = ("seconds_by_the_clock", "processor_seconds")
    return {
        name: {what: _spread(list(values)) for what, values in zip(measured, zip(*own, strict=True), strict=True)}
        for name, own in taken.items()
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main() -> None:
    """Run and print."""
    ctypes.CDLL(None).prctl(BECOME_SUBREAPER, 1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    before = {"ray": version("ray"), "load_before": os.getloadavg()[0]}
    told = {"machine": describe() | before, "rounds": given.rounds, "engines": run(given.rounds)}
    print(json.dumps(told, indent=2))
    if given.output is not None:
        given.output.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
