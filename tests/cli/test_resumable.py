"""Outputs of runs that were killed, interrupted, or had no space left."""

import contextlib
import os
import random
import signal
import time
from dataclasses import dataclass, field

import pytest
from full_disk import full_disk

from bayesrm_fast import InputError
from bayesrm_fast.cli.resumable import ResumableOutput
from bayesrm_fast.text.files import read_rows


@dataclass(frozen=True)
class Record:
    """Such as a row of an input."""

    text: str
    where: str = field(default="", compare=False)


RECORDS = [Record(f"text {i}") for i in range(7)]
JOB = {"posterior": "one", "input": "one"}


def result(record):
    return {"row": record.text, "mean": len(record.text) / 7}


RESULTS = [result(record) for record in RECORDS]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("bayesrm_fast.cli.resumable.CHUNK", 2)


def resumable(path, resume=True, job=JOB, records=RECORDS):
    return ResumableOutput(path, job, records, resume)


def begin(path, chunks=2):
    """A run that ends after some chunks; gives its partial file."""
    with resumable(path, resume=False) as results:
        for chunk, _ in zip(results.chunks(), range(chunks), strict=False):
            results.add(chunk, map(result, chunk))
    return results.partial


def complete(path, resume=True, records=RECORDS):
    """The rows that a run had before it, and all those that it ends with."""
    with resumable(path, resume, records=records) as results:
        had = results.count
        for chunk in results.chunks():
            results.add(chunk, map(result, chunk))
        results.finish(len(records))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return had, read_rows(path)


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_an_empty_result_is_counted_and_gives_no_row(tmp_path, name):
    with resumable(tmp_path / name) as results:
        for chunk in results.chunks():
            results.add(chunk, [{} if record in RECORDS[1:3] else result(record) for record in chunk])
        assert results.count == len(RECORDS)
        results.finish(len(RECORDS))
    assert read_rows(tmp_path / name) == [RESULTS[0], *RESULTS[3:]]


@pytest.mark.parametrize("left", [b"", b'{"row": 5, "result": {"row": 4}', b'{"row": 5'])
@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
def test_a_resumed_output_equals_an_unbroken_one(tmp_path, capfd, name, left):
    path = tmp_path / name
    with begin(path).open("ab") as file:  # killed in the middle of the third chunk
        file.write(left)
    assert complete(path) == (4, RESULTS)
    resumed = path.read_bytes()
    assert complete(path, resume=False) == (0, RESULTS)
    assert path.read_bytes() == resumed
    assert capfd.readouterr().err == ""


def test_without_resume_it_starts_anew(tmp_path):
    begin(tmp_path / "out.jsonl")
    with resumable(tmp_path / "out.jsonl", resume=False) as again:
        assert (again.count, list(again)) == (0, [])


def test_without_a_partial_file_resuming_begins(tmp_path):
    assert complete(tmp_path / "out.jsonl") == (0, RESULTS)


def test_a_whole_partial_file_needs_no_more_work(tmp_path):
    begin(tmp_path / "out.jsonl", chunks=4)
    assert complete(tmp_path / "out.jsonl") == (7, RESULTS)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"posterior": "two", "input": "one"}, r"\(what differs: posterior\)"),
        ({"posterior": "two", "input": "two"}, r"\(what differs: posterior, input\)"),
        ({"posterior": "one"}, r"\(what differs: input\)"),
        ({**JOB, "k": 1}, r"\(what differs: k\)"),
    ],
)
def test_another_job_is_not_continued_and_its_parts_are_named(tmp_path, job, message):
    partial = begin(tmp_path / "out.jsonl")
    before = partial.read_bytes()
    with pytest.raises(InputError, match=rf"is of another run {message}: remove it or run without --resume"):
        resumable(tmp_path / "out.jsonl", job=job)
    assert partial.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "cut before its rows", "gone", "changed", "no job", "deep"])
def test_a_header_that_is_damaged_makes_a_run_begin_anew_and_say_so(tmp_path, capfd, damage):
    path = tmp_path / "out.jsonl"
    partial = begin(path)
    header, *rows = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(
        {
            "cut": header[:20],
            "cut before its rows": header[:20] + b"".join(rows),
            "gone": b"".join(rows),
            "changed": b"\0" + header[1:] + b"".join(rows),
            "no job": b'{"job": null}\n' + b"".join(rows),
            "deep": b"[" * 100_000 + b"\n" + b"".join(rows),
        }[damage]
    )
    assert complete(path) == (0, RESULTS)
    assert "out.jsonl.partial does not say whose rows it holds: beginning anew" in capfd.readouterr().err


def test_an_empty_partial_file_is_a_beginning(tmp_path, capfd):
    (tmp_path / "out.jsonl.partial").touch()
    assert complete(tmp_path / "out.jsonl") == (0, RESULTS)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("edit", "kept"),
    [
        (lambda rows: rows[1:], 0),
        (lambda rows: [rows[0], *rows[2:]], 0),
        (lambda rows: [*rows[:2], *rows[3:]], 2),
        (lambda rows: [rows[0], rows[0], *rows[1:]], 0),
        (lambda rows: [*rows[:2], rows[1], *rows[2:]], 2),
        (lambda rows: [*rows[:2], rows[3], rows[2], *rows[4:]], 2),
        (lambda rows: [*rows[:3], rows[3].replace(b"text 3", b"text 4"), *rows[4:]], 2),
        (lambda rows: [*rows[:3], rows[3].replace(b'"mean": 0.', b'"mean": 1.'), *rows[4:]], 2),
        (lambda rows: [*rows[:2], b"\0\0\0\n", b"[1]\n", *rows[2:]], 2),
        (lambda rows: [*rows[:2], b"\xff\xfe\n", *rows[2:]], 2),
        (lambda rows: [*rows[:2], b'{"row": 3, "result": {}}\n', *rows[2:]], 2),
        (lambda rows: [*rows, rows[-1]], 6),
    ],
)
def test_a_row_that_is_lost_doubled_moved_or_altered_is_computed_again_with_all_after_it(tmp_path, capfd, edit, kept):
    path = tmp_path / "out.jsonl"
    partial = begin(path, chunks=3)
    header, *rows = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(header + b"".join(edit(rows)))
    assert complete(path) == (kept, RESULTS)
    assert f"out.jsonl.partial is damaged: continuing after its row {kept}" in capfd.readouterr().err


def test_rows_of_another_input_are_computed_again(tmp_path):
    """Of one that was changed while a run read it, and changed back."""
    path = tmp_path / "out.jsonl"
    with resumable(path, resume=False, records=[Record("other") if i == 2 else one for i, one in enumerate(RECORDS)]):
        pass
    other = [RECORDS[0], RECORDS[1], Record("other"), RECORDS[3]]
    with resumable(path, resume=False, records=other) as results:
        for chunk in results.chunks():
            results.add(chunk, map(result, chunk))
    assert complete(path) == (2, RESULTS)
    begin(path)
    assert complete(path, records=[Record(one.text, "another file") for one in RECORDS]) == (4, RESULTS)


def test_rows_that_came_or_went_are_told_before_there_is_an_output(tmp_path):
    path = tmp_path / "out.jsonl"
    with resumable(path) as results:
        for chunk in results.chunks():
            results.add(chunk, map(result, chunk))
        with pytest.raises(InputError, match="the input had 8 rows, and 7 were read"):
            results.finish(8)
    assert not path.exists()


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
@pytest.mark.parametrize(
    "meddle",
    [
        lambda partial: partial.unlink(),
        lambda partial: partial.write_bytes(b""),
        lambda partial: partial.write_bytes(partial.read_bytes().rsplit(b"\n", 2)[0] + b"\n"),
        lambda partial: partial.write_bytes(partial.read_bytes() + partial.read_bytes().splitlines()[-1] + b"\n"),
        lambda partial: partial.write_bytes(partial.read_bytes() + b"{"),
    ],
)
def test_a_partial_file_that_something_else_has_changed_becomes_no_output(tmp_path, meddle, name):
    path = tmp_path / name
    with resumable(path) as results:
        for chunk in results.chunks():
            results.add(chunk, map(result, chunk))
        meddle(results.partial)
        with pytest.raises(InputError, match="partial was changed by something else"):
            results.finish(7)
    assert not path.exists()
    assert complete(path)[1] == RESULTS


def test_two_runs_do_not_write_one_output(tmp_path):
    path = tmp_path / "out.jsonl"
    with resumable(path, resume=False) as first:
        for resume in (False, True):
            with pytest.raises(InputError, match=r"out\.jsonl is being written by another run"):
                resumable(path, resume)
        for chunk in first.chunks():
            first.add(chunk, map(result, chunk))
        first.finish(7)
    assert complete(path) == (0, RESULTS)


def test_of_many_processes_on_one_output_one_writes_and_the_others_refuse(tmp_path):
    path = tmp_path / "out.jsonl"
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with resumable(path) as results:
                    for chunk in results.chunks():
                        time.sleep(0.01)
                        results.add(chunk, map(result, chunk))
                    results.finish(7)
                code = 0
            except InputError:
                code = 2
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert 0 in codes
    assert set(codes) <= {0, 2}
    assert read_rows(path) == RESULTS


def test_what_cannot_be_written_is_told_and_what_was_there_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    (tmp_path / "taken.jsonl.partial").mkdir()
    with pytest.raises(InputError, match=r"taken\.jsonl\.partial cannot be written"):
        resumable(tmp_path / "taken.jsonl", False)
    (tmp_path / "taken.jsonl.partial").rmdir()

    def fails(descriptor):
        raise OSError(28, "No space left on device")

    with resumable(path) as results, monkeypatch.context() as patch:
        chunks = results.chunks()
        chunk = next(chunks)
        results.add(chunk, map(result, chunk))
        patch.setattr("os.fsync", fails)
        with pytest.raises(InputError, match=r"out\.jsonl\.partial cannot be written: No space left"):
            results.add(chunk := next(chunks), map(result, chunk))
        assert results.count == 2
    assert not path.exists()
    assert complete(path)[1] == RESULTS


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
def test_a_run_goes_on_wherever_the_disk_was_full(tmp_path, name):
    path = tmp_path / name
    whole = begin(path, chunks=4).stat().st_size
    for limit in [*range(0, whole, 97), whole]:
        begin(path, chunks=0).unlink()
        with full_disk(limit), contextlib.suppress(InputError):
            complete(path)
        assert complete(path)[1] == RESULTS
        path.unlink()


def test_a_row_that_is_no_json_is_not_written(tmp_path):
    with resumable(tmp_path / "out.jsonl", False) as results:
        with pytest.raises(ValueError, match="JSON compliant"):
            results.add(RECORDS[:2], [{"mean": 1.0}, {"mean": float("nan")}])
        assert (results.count, list(results)) == (0, [])


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_run_that_is_killed_again_and_again_ends_as_an_unbroken_one(tmp_path, name):
    path, draw = tmp_path / "killed" / name, random.Random(0)
    path.parent.mkdir()
    records = [Record(f"text {i}") for i in range(60)]
    (tmp_path / "unbroken").mkdir()
    unbroken = complete(tmp_path / "unbroken" / name, records=records)

    def work():
        complete(path, records=records)

    deaths = 0
    while not path.exists():
        child = os.fork()
        if child == 0:
            work()
            os._exit(0)
        if deaths:  # the first dies at once
            time.sleep(draw.uniform(0.0, 0.003 * (10 + deaths)))  # on a slow machine, too, one lives long enough
        os.kill(child, signal.SIGKILL)
        deaths += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
        assert deaths < 300
    assert deaths
    assert (0, read_rows(path)) == unbroken
    assert complete(path, records=records) == unbroken  # and nothing is left to be in the way
