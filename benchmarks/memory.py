"""What one formulation holds at its peak, in a process of its own."""

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST = 20 * 2**30
"""Bytes of address space; what needs more runs out of memory."""

SECONDS = 400


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def report_peak(run: Callable[[], Any]) -> None:
    """Run, and print as JSON the bytes that were held at the peak beyond those held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that using it again counts
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held now
    before = _status("VmRSS")
    run()
    print(json.dumps({"peak_bytes": _status("VmHWM") - before, "before_bytes": before}))


def limit() -> None:
    """Make running out of memory an error instead of the machine's end."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST, MOST))


def peak_of(module: str, *arguments: str) -> dict[str, Any]:
    """What `python -m module arguments…`, which calls `report_peak`, says; or what it died of."""
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            command, cwd=root, env=os.environ, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {SECONDS} seconds"}
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"failed": last[:300]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
