"""Outputs of runs that were killed."""

import json

import pytest

from bayesrm_fast import InputError
from bayesrm_fast.cli.resumable import ResumableOutput


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("bayesrm_fast.cli.resumable.CHUNK", 2)


def resumable(path, resume, job=1):
    return ResumableOutput(path, {"job": job}, resume)


def test_a_resumed_output_equals_an_unbroken_one(tmp_path):
    rows = [{"row": i} for i in range(7)]
    path = tmp_path / "out.jsonl"
    first = resumable(path, False)
    first.add(rows[:2])
    first.add(rows[2:4])
    with first.partial.open("ab") as file:  # killed in the middle of the third chunk
        file.write(b'{"row": 4}\n{"ro')
    second = resumable(path, True)
    assert second.count == 4
    assert list(second.rows()) == rows[:4]
    second.add(rows[4:6])
    second.add(rows[6:])
    second.finish()
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_without_resume_it_starts_anew(tmp_path):
    path = tmp_path / "out.jsonl"
    resumable(path, False).add([{"row": 0}, {"row": 1}])
    again = resumable(path, False)
    assert again.count == 0
    assert list(again.rows()) == []


def test_another_job_is_not_continued(tmp_path):
    path = tmp_path / "out.jsonl"
    resumable(path, False).add([{"row": 0}, {"row": 1}])
    with pytest.raises(InputError, match="another model, input or version"):
        resumable(path, True, job=2)
