"""What Ray costs beside a local run: `bayesrm score` on the same file, locally and with one and two of Ray's workers.

`python -m benchmarks.ray_overhead [--rounds 2] [--output FILE]`: MiniLM with LoRA on a CPU, made texts of ragged
lengths, one thread a process. The outputs must have the same bytes. Ray listens on all addresses of the machine while
it runs: `make ray` shows how to give it loopback alone.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from bayesrm_fast.cli.resumable import CHUNK
from bayesrm_fast.text.files import write_rows
from benchmarks.engine import model, text
from benchmarks.machine import describe

PROMPTS, RESPONSES = 384, 2
ENGINES = {
    "local": [],
    "ray, 1 worker": ["--engine", "ray", "--workers", "1"],
    "ray, 2 workers": ["--engine", "ray", "--workers", "2"],
}


def timed(engine: list[str], folder: Path) -> dict[str, float]:
    """`seconds` of a whole command, `start` until its first chunk is written, and `responses_a_second` after that."""
    output = folder / "scores.jsonl"
    partial = folder / "scores.jsonl.partial"
    command = [sys.executable, "-m", "bayesrm_fast", "score", "my-rm", "rows.jsonl", output.name, *engine]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    chunks: list[float] = []
    size = 0
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as running:
        while running.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                if partial.stat().st_size > size:
                    size = partial.stat().st_size
                    chunks.append(time.perf_counter())
            time.sleep(0.02)
    seconds = time.perf_counter() - began
    if running.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} has failed")
    expected = folder / "local.jsonl"
    if not expected.exists():
        output.rename(expected)
    elif output.read_bytes() != expected.read_bytes():
        raise SystemExit(f"{' '.join(engine)} wrote other numbers than a local run")
    # The first growth is the header's; the last chunk may be written and renamed between two looks.
    _, first, *_, last = chunks
    return {
        "seconds": seconds,
        "start": first - began,
        "responses_a_second": RESPONSES * CHUNK * (len(chunks) - 2) / (last - first),
    }


def run(rounds: int, prompts: int = PROMPTS) -> dict[str, dict[str, float]]:
    """Medians of each engine over rounds in which they take turns."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model().save_pretrained(folder / "my-rm")
        lot = random.Random(2)
        rows = [
            {"prompt": text(lot, 20), "responses": [text(lot, 40) for _ in range(RESPONSES)]} for _ in range(prompts)
        ]
        write_rows(folder / "rows.jsonl", rows)
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in ENGINES}
        for _ in range(rounds):
            for name, engine in ENGINES.items():
                taken[name].append(timed(engine, folder))
    return {
        name: {figure: statistics.median(one[figure] for one in own) for figure in own[0]}
        for name, own in taken.items()
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    told = {"machine": describe() | {"ray": version("ray")}, "rounds": given.rounds, "engines": run(given.rounds)}
    print(json.dumps(told, indent=2))
    if given.output is not None:
        given.output.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
