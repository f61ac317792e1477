"""The quick run of a benchmark, as its users start it."""

import subprocess
import sys

from benchmarks.data import ROOT


def quick_run(benchmark, output, *arguments):
    """Runs `python -m benchmarks.<benchmark> --quick`, its results into the folder `output`."""
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--quick", "--output", output, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
