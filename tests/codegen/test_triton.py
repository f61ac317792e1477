"""What the compiler makes of the Triton kernels, for chips that are not here."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SPILLED_WORDS = {"bf16": 0, "fp32": 64}
"""float32 is there for its digits: three tf32 products of halves keep twice the operands."""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_compile_within_their_resources():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_triton.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["sm"] for row in rows} == {80, 90}
    kernels = {row["kernel"] for row in rows}
    assert kernels == {"rotate_rows", "project_tiles", "outside_tiles", "sum_splits", "weigh_splits", "store_tiles"}
    for row in rows:
        assert row["shared"] <= row["bound"] <= row["limit"], row
        assert row["spills"] <= SPILLED_WORDS[row["dtype"]], row
        if row["kernel"] in ("project_tiles", "outside_tiles", "store_tiles"):
            assert row["matrix_unit"], row
        if row["kernel"] in ("project_tiles", "store_tiles") and row["dtype"] == "bf16" and row["shape"][1] % 16 == 0:
            assert row["wide_loads"], row
