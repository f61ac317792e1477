"""What starting costs: that it is measured, and not what it is."""

import json
import subprocess

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.scoring.__main__ import main
from benchmarks.scoring.start import STARTS, run_python


def test_every_start_has_its_times(tmp_path):
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--quick", "--part", "start", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    part = json.loads((tmp_path / "scoring-quick.json").read_text())["parts"]["start"]
    assert set(part["formulations"]) == set(STARTS)
    assert all(row["processor_seconds"] > 0 for row in part["formulations"].values())
    assert part["machine"]["processor"]


def test_a_start_that_fails_is_no_time():
    with pytest.raises(subprocess.CalledProcessError):
        run_python(["-c", "raise SystemExit(1)"])
