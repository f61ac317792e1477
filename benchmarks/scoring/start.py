"""What starting costs: the command's help, which is to need no torch, and the package's import beside torch's own."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.data import ROOT

STARTS = {  # arguments of Python
    "bayesrm --help": ("-m", "bayesrm_fast.cli", "--help"),
    "import bayesrm_fast": ("-c", "import bayesrm_fast"),
    "import torch": ("-c", "import torch"),
    # `import bayesrm_fast` imports nothing yet; this is what a program that scores pays.
    "from bayesrm_fast import BayesianRewardModel": ("-c", "from bayesrm_fast import BayesianRewardModel"),
}


def start_part(quick: bool) -> dict[str, Any]:
    """Processor time and wall time of each in a process of its own, in turns; medians."""
    rounds = 1 if quick else 9
    for arguments in STARTS.values():  # so that files are in memory and compiled to bytecode
        run_python(arguments)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in STARTS}
    for _ in range(rounds):
        for name, arguments in STARTS.items():
            spent[name].append(run_python(arguments))
    return {
        "formulations": {
            name: {
                "seconds": statistics.median(wall for wall, _ in runs),
                "processor_seconds": statistics.median(processor for _, processor in runs),
                "rounds": rounds,
            }
            for name, runs in spent.items()
        }
    }


def run_python(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall time and processor time, of all threads, of Python with these arguments.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return wall, usage.ru_utime + usage.ru_stime
