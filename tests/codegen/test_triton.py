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

UNALIGNED = 128
"""Where every element has an address of its own; no model's d is such a one."""

FORM_TILES = {"project_tiles", "outside_tiles", "store_tiles", "stream_bases", "multiply_gradients"}
"""Of a gradient or of products, by matrix units, from wide loads."""


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
    assert {row["kernel"] for row in rows} == FORM_TILES | {"rotate_rows", "sum_splits", "weigh_splits", "sum_pieces"}
    for row in rows:
        assert row["shared"] <= row["bound"] <= row["limit"], row
        assert row["spills"] <= (UNALIGNED if row["shape"][1] % 16 else SPILLED_WORDS[row["dtype"]]), row
        assert not row["float64"] or row["kernel"] == "sum_pieces", row
        if row["kernel"] in FORM_TILES:
            assert row["matrix_unit"], row
            # The second pass of kron_project is there for float32, and p's thirds leave wide rows half the tokens.
            narrow = row["kernel"] == "outside_tiles" or (row["kernel"] == "store_tiles" and row["shape"][0] > 16)
            if not narrow and row["dtype"] == "bf16" and row["shape"][1] % 16 == 0:
                assert row["wide_loads"], row
