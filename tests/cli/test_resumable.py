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
    del first
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


def test_a_partial_file_of_nothing_but_its_header_is_continued(tmp_path):
    path = tmp_path / "out.jsonl"
    first = resumable(path, False)
    with first.partial.open("ab") as file:
        file.write(b'{"row": 0}\n{"ro')  # less than a chunk
    del first
    again = resumable(path, True)
    assert (again.count, list(again.rows())) == (0, [])
    assert again.partial.read_bytes().count(b"\n") == 1
    assert again.partial.read_bytes().count(b"\n") == 1


def test_without_a_partial_file_resuming_begins(tmp_path):
    assert resumable(tmp_path / "out.jsonl", True).count == 0


def test_what_cannot_be_written_is_told_and_what_was_there_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    results = resumable(path, False)
    results.add([{"row": 0}, {"row": 1}])

    def fails(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fails)
        with pytest.raises(InputError, match=r"out\.jsonl\.partial cannot be written: No space left"):
            results.add([{"row": 2}, {"row": 3}])
    assert results.count == 2
    results.close()
    again = resumable(path, True)
    assert list(again.rows())[:2] == [{"row": 0}, {"row": 1}]
    (tmp_path / "taken.jsonl.partial").mkdir()
    with pytest.raises(InputError, match=r"taken\.jsonl\.partial cannot be written"):
        resumable(tmp_path / "taken.jsonl", False)


def test_a_row_that_is_no_json_is_not_written(tmp_path):
    results = resumable(tmp_path / "out.jsonl", False)
    with pytest.raises(ValueError, match="JSON compliant"):
        results.add([{"mean": 1.0}, {"mean": float("nan")}])
    assert (results.count, list(results.rows())) == (0, [])


@pytest.mark.parametrize("kept", [0, 5])
def test_a_header_that_was_cut_counts_as_nothing_done(tmp_path, kept):
    path = tmp_path / "out.jsonl"
    resumable(path, False)
    partial = path.with_name("out.jsonl.partial")
    partial.write_bytes(partial.read_bytes()[:kept])
    again = resumable(path, True)
    again.add([{"row": 0}])
    again.finish()
    assert path.read_text() == '{"row": 0}\n'


@pytest.mark.parametrize("garbage", [b"\0\0\0\n\0\n", b"\xff\xfe\n[1]\n", b'{"row": 2\n{"row": 3}\n'])
def test_lines_that_are_no_rows_and_all_after_them_are_done_again(tmp_path, garbage):
    path = tmp_path / "out.jsonl"
    first = resumable(path, False)
    first.add([{"row": 0}, {"row": 1}])
    with first.partial.open("ab") as file:
        file.write(garbage)
    del first
    again = resumable(path, True)
    assert (again.count, list(again.rows())) == (2, [{"row": 0}, {"row": 1}])


def test_two_runs_do_not_write_one_output(tmp_path):
    path = tmp_path / "out.jsonl"
    first = resumable(path, False)
    for resume in (False, True):
        with pytest.raises(InputError, match="being written by another run"):
            resumable(path, resume)
    first.add([{"row": 0}])
    first.finish()
    assert resumable(path, True).count == 0
