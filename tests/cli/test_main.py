"""The installed command from outside, and what all commands have in common."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bayesrm_fast.atomic import written_whole
from bayesrm_fast.cli.main import app
from bayesrm_fast.text.files import read_rows, write_rows

COMMAND = Path(sys.executable).with_name("bayesrm")
COMMANDS = typer.main.get_command(app).commands

HEAVY = ("torch", "transformers", "peft", "datasets", "trl", "pyarrow", "safetensors", "triton", "fastapi", "uvicorn")


def run(*command, code=0):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_installed_command_scores_and_warns_in_one_line(model_folder, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "able", "responses": ["", "act " * 100_000]}])
    done = run(COMMAND, "score", model_folder, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", "--json")
    assert json.loads(done.stdout) == {"output": str(tmp_path / "out.jsonl"), "rows": 1, "rows_with_cut_text": 1}
    assert done.stderr.splitlines() == [
        f"warning: 1 empty response(s), the first is {tmp_path / 'rows.jsonl'}, row 1: responses[0]; scored as they are"
    ]
    assert read_rows(tmp_path / "out.jsonl")[0]["truncated"] == [False, True]


def test_the_installed_command_tells_bad_input_in_one_line(tmp_path):
    done = run(COMMAND, "info", tmp_path, code=2)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"bayesrm: {tmp_path}/posterior.json cannot be read: ")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_is_not_of_utf8_is_told_all_that_it_can_show(encoding, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    assert "torchrun --nproc-per-node 8 -m bayesrm_fast.cli fit ?" in run(COMMAND, "fit", "--help").stdout


def test_the_version_is_told():
    assert run(COMMAND, "--version").stdout == f"bayesrm_fast {importlib.metadata.version('bayesrm_fast')}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"]])
def test_help_loads_no_heavy_library(arguments):
    """It is what a person waits for, and torch alone takes seconds to import."""
    code = f"""
import sys
from bayesrm_fast.cli.main import main
sys.argv = {["bayesrm", *arguments]}
try:
    main()
finally:
    print("loaded:", [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = run(sys.executable, "-c", code)
    assert "Usage: bayesrm" in done.stdout
    assert done.stderr.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize("command", ["machine", "backends", "model", "report"])
def test_what_needs_no_model_loads_neither_transformers_nor_peft(command, model_folder, tmp_path):
    """They take three times as long to import as torch."""
    row = {"prompt": "p", "mean": [1.0], "variance": [1.0], "std": [1.0], "truncated": [False]}
    write_rows(tmp_path / "scores.jsonl", [row])
    arguments = {
        "machine": ["info"],
        "backends": ["info", "--backends"],
        "model": ["info", str(model_folder)],
        "report": ["report", str(tmp_path / "scores.jsonl"), str(tmp_path / "report.html")],
    }
    code = f"""
import sys
from bayesrm_fast.cli.main import main
sys.argv = {["bayesrm", *arguments[command]]}
try:
    main()
finally:
    print("loaded:", sorted(sys.modules.keys() & {set(HEAVY) - {"torch", "safetensors"}}), file=sys.stderr)
"""
    assert run(sys.executable, "-c", code).stderr.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize("module", ["bayesrm_fast", "bayesrm_fast.cli"])
def test_the_module_runs_as_the_command(module):
    assert "best-of-n" in run(sys.executable, "-m", module, "--help").stdout


def test_the_commands_are_these():
    names = "train fit calibrate score best-of-n bonbon select-pairs report rewardbench serve info"
    assert list(COMMANDS) == names.split()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_all_that_it_takes_has_help(name, bayesrm):
    command = COMMANDS[name]
    out, _ = bayesrm(name, "--help")
    assert command.help.splitlines()[0][:40] in " ".join(out.split())
    for parameter in command.params:
        if parameter.name != "help":
            assert parameter.help, parameter.name


def test_without_a_command_help_is_shown(bayesrm):
    out, err = bayesrm(code=2)
    assert all(name in out + err for name in COMMANDS)


def test_what_a_command_does_not_take_is_told(bayesrm):
    for arguments in (["sing"], ["score"], ["info", "--loudly"]):
        out, err = bayesrm(*arguments, code=2)
        assert "Usage: " in err
        assert "Traceback" not in out + err


def test_other_errors_are_not_hidden(bayesrm, monkeypatch):
    """A bug keeps its traceback; one line would hide where it is."""

    def breaks():
        raise ZeroDivisionError

    monkeypatch.setattr("bayesrm_fast.ops.machine.describe_machine", breaks)
    with pytest.raises(ZeroDivisionError):
        bayesrm("info")


def test_a_run_that_is_told_to_terminate_cleans_up(bayesrm, tmp_path, monkeypatch):
    def works():
        with written_whole(tmp_path / "file") as beside:
            beside.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("bayesrm_fast.ops.machine.describe_machine", works)
    before = signal.getsignal(signal.SIGTERM)
    try:
        bayesrm("info", code=128 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_file_system_is_one_line(refused, monkeypatch):
    def fails(*args):
        raise OSError(28, "No space left on device", "/dev/full")

    monkeypatch.setattr("bayesrm_fast.ops.machine.describe_machine", fails)
    assert refused("info") == "bayesrm: [Errno 28] No space left on device: '/dev/full'"


def test_words_of_other_languages_and_markup_are_shown_as_they_are(refused, tmp_path):
    assert "[bold]ü/posterior.json" in refused("info", tmp_path / "[bold]ü")
