"""Commands whose model runs in Ray's actors."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ray_cluster import kill, process_of, until
from tiny import words

from bayesrm_fast import InputError
from bayesrm_fast.cli.resumable import ResumableOutput
from bayesrm_fast.text.files import read_rows, write_rows

pytestmark = pytest.mark.usefixtures("ray_cluster")

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
on_ray = pytest.importorskip("bayesrm_fast.cli.on_ray")

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
    line = refused("score", adapter_folder, *arguments)
    assert "there is no posterior" in line
    assert f"in {Path.cwd()} on the worker's node 127.0.0.1" in line  # which may lack what this one has
    line = refused("score", model_folder, *arguments, "--workers", "99")
    assert "--workers 99 is too many: each takes one of the cluster's 4 CPUs" in line
    assert not (tmp_path / "out.jsonl").exists()


def test_a_cluster_that_does_not_answer_is_refused_at_once(monkeypatch):
    """Ray itself tries for minutes, also what a cluster has left that was started on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda _: address)
    for told in (address, ""):
        monkeypatch.setenv("RAY_ADDRESS", told)
        with pytest.raises(InputError, match=f"^no Ray cluster answers at {address} .*refused"):
            on_ray._connect()
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    with pytest.raises(InputError, match=r"ray://127\.0\.0\.1:10001 is for Ray's client"):
        on_ray._connect()


@pytest.mark.parametrize("raised", [ValueError, ConnectionError, RuntimeError])
def test_what_ray_says_of_its_cluster_is_one_line_and_termination_stays_the_commands(raised, monkeypatch):
    def init(**_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray replaces it
        raise raised("Invalid address format: here\nand more")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(on_ray, "canonicalize_bootstrap_address", lambda _: None)
    monkeypatch.setenv("RAY_ADDRESS", "here")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InputError, match=r"no cluster at RAY_ADDRESS=here .*: Invalid address format: here$"):
        on_ray._connect()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_cluster_without_room_for_any_worker_is_refused(model_folder, tmp_path, refused, monkeypatch):
    write_rows(tmp_path / "rows.jsonl", rows_of(2))
    monkeypatch.setattr(on_ray.WorkerRoom, "of_cluster", lambda: on_ray.WorkerRoom("CPU", 0, 1))
    line = refused("score", model_folder, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", "--engine", "ray")
    assert "neither a GPU nor a CPU" in line


def test_a_command_that_waits_for_a_busy_cluster_says_so(model_folder, tmp_path, bayesrm, monkeypatch):
    @ray.remote(num_cpus=4)
    class Job:
        def is_there(self):
            return True

    job = Job.remote()
    ray.get(job.is_there.remote())
    lines = []

    def show(line):
        lines.append(line)
        ray.kill(job)

    monkeypatch.setattr(on_ray, "SECONDS_BETWEEN_LINES", 0.5)
    monkeypatch.setattr(on_ray, "show_line", show)
    write_rows(tmp_path / "rows.jsonl", rows_of(2))
    bayesrm("score", model_folder, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", "--engine", "ray", "--workers", 1)
    assert "0 of the cluster's 4 CPUs are free" in lines[0]


def test_work_at_which_every_worker_dies_ends_the_command(monkeypatch):
    """Ray Data would start another one for ever."""

    class Deadly:
        def load(self):
            return self

        def facts(self, _):
            os.kill(os.getpid(), signal.SIGKILL)

        def results(self, _):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(on_ray, "MOST_DEATHS", 1)
    with on_ray.OnRay(Deadly(), 1) as running:
        with pytest.raises(InputError, match="workers died, 2 of them, while they loaded the model"):
            running.facts("sha256")
        with pytest.raises(InputError, match="workers died, 2 of them at the same rows"):
            list(running.results(iter([["row"]]), lambda: iter(["row"]), 0))
