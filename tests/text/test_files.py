"""Rows in and out of files, and output that survives a kill."""

import gzip
from pathlib import Path

import pytest

from bayesrm_fast import InputError
from bayesrm_fast.text.files import check_output, read_rows, write_rows

ROWS = [{"prompt": "a", "responses": ["b", "ü"]}, {"prompt": "c", "responses": ["d"]}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_rows_survive_the_round(tmp_path, name):
    write_rows(tmp_path / name, ROWS)
    assert read_rows(tmp_path / name) == ROWS
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_rows_that_fit_no_schema_are_refused(tmp_path):
    with pytest.raises(InputError, match="Parquet schema"):
        write_rows(tmp_path / "rows.parquet", [{"prompt": "a"}, {"prompt": [{"role": "user"}]}])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b"", "empty"),
        ("rows.jsonl", b"\n \n", "empty"),
        ("rows.jsonl", b'{"a": 1}\n{"a": \n', "row 2 is not valid JSON"),
        ("rows.jsonl", b'{"a": 1}\n[1]\n', "row 2 is not a JSON object"),
        ("rows.jsonl", b"\xff\xfe{}", "cannot be read"),
        ("rows.jsonl.gz", b"no gzip", "cannot be read"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "cannot be read"),
        ("rows.parquet", b"no parquet", "not a readable Parquet file"),
        ("rows.csv", b"a,b", "must end in"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_rows(path)
    assert str(path) in str(error.value)


def test_a_missing_file():
    with pytest.raises(InputError, match="does not exist"):
        read_rows(Path("nothing.jsonl"))


@pytest.mark.parametrize("name", ["rows.txt", "nothing/rows.jsonl", "folder.jsonl"])
def test_outputs_that_cannot_be_written(tmp_path, name):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError):
        check_output(tmp_path / name)
