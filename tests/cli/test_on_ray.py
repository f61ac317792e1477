"""Commands whose model runs in Ray's actors."""

import shutil
import subprocess
import sys
import threading

import pytest
from ray_cluster import kill, process_of, until
from tiny import words

from bayesrm_fast.cli.resumable import ResumableOutput
from bayesrm_fast.text.files import read_rows, write_rows

pytestmark = pytest.mark.usefixtures("ray_cluster")

WORKER = "_Worker"
"""In the name of an actor's process."""


def rows_of(count, responses=3):
    return [
        {"prompt": words(3, i), "responses": [words(2 + j, 7 * i + j) for j in range(responses)], "id": f"row {i}"}
        for i in range(count)
    ]


def test_the_output_has_the_bytes_of_a_local_one(model_folder, tmp_path, summary, monkeypatch):
    """From where the command runs, whose paths may be relative."""
    monkeypatch.setattr("bayesrm_fast.cli.resumable.CHUNK", 8)
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.parquet", rows_of(30))
    (tmp_path / "my-rm").symlink_to(model_folder)
    for command in (["score", "--relative"], ["best-of-n", "--explain"]):
        told = [
            summary(*command, "my-rm", "rows.parquet", f"{name}.jsonl", "--engine", name, *workers)
            for name, workers in (("local", []), ("ray", ["--workers", 2]))
        ]
        assert told[0] | {"output": "ray.jsonl"} == told[1]
        assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()
        assert [row["id"] for row in read_rows(tmp_path / "ray.jsonl")] == [f"row {i}" for i in range(30)]


def test_a_killed_command_and_a_killed_worker_lose_nothing_and_double_nothing(model_folder, tmp_path, bayesrm):
    write_rows(tmp_path / "rows.jsonl", rows_of(900))
    partial = tmp_path / "out.jsonl.partial"
    arguments = ["score", str(model_folder), str(tmp_path / "rows.jsonl"), str(tmp_path / "out.jsonl")]

    def lines():
        return partial.read_bytes().count(b"\n") if partial.exists() else 0

    running = subprocess.Popen(
        [sys.executable, "-m", "bayesrm_fast", *arguments, "--engine", "ray", "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: lines() > 64 or running.poll() is not None)
    running.kill()
    running.wait()
    killed_after = lines() - 1
    assert 64 <= killed_after < 900
    shutil.copy(partial, tmp_path / "local.jsonl.partial")

    worker = []

    def kill_a_worker():
        until(lambda: lines() - 1 > killed_after + 64)
        worker.append(process_of(WORKER))
        kill(worker[0])

    killing = threading.Thread(target=kill_a_worker)
    killing.start()
    bayesrm(*arguments, "--engine", "ray", "--workers", 1, "--resume")
    killing.join()
    assert worker
    for name, options in (("unbroken", []), ("local", ["--resume"])):
        bayesrm("score", model_folder, tmp_path / "rows.jsonl", tmp_path / f"{name}.jsonl", *options)
        assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / f"{name}.jsonl").read_bytes()


def test_a_run_that_was_killed_when_all_was_scored_writes_it(model_folder, tmp_path, bayesrm):
    write_rows(tmp_path / "rows.jsonl", rows_of(3))
    arguments = ("score", model_folder, tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumableOutput, "finish", lambda *_: sys.exit(3))
        bayesrm(*arguments, code=3)
    bayesrm(*arguments, "--engine", "ray", "--resume")
    assert len(read_rows(tmp_path / "out.jsonl")) == 3


def test_what_a_worker_refuses_is_one_line(adapter_folder, model_folder, tmp_path, refused):
    write_rows(tmp_path / "rows.jsonl", rows_of(2))
    arguments = (tmp_path / "rows.jsonl", tmp_path / "out.jsonl", "--engine", "ray")
    assert "there is no posterior" in refused("score", adapter_folder, *arguments)
    line = refused("score", model_folder, *arguments, "--workers", "99")
    assert "--workers 99 is too many: each takes one of the cluster's 4 CPUS" in line
    assert not (tmp_path / "out.jsonl").exists()
