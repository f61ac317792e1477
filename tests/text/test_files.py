"""Rows in and out of files."""

import datetime
import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bayesrm_fast import InputError
from bayesrm_fast.text.files import ROWS_OF_A_GROUP, check_rows_fit, iter_rows, read_rows, write_rows

ROWS = [{"prompt": "a", "responses": ["b", "ü"]}, {"prompt": "c", "responses": ["d"]}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_rows_survive_the_round(tmp_path, name):
    write_rows(tmp_path / name, ROWS)
    assert read_rows(tmp_path / name) == ROWS
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_json_array_is_read_and_not_written(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    assert read_rows(tmp_path / "rows.json") == ROWS
    with pytest.raises(InputError, match=r"must end in \.jsonl, \.jsonl\.gz, \.parquet$"):
        write_rows(tmp_path / "other.json", ROWS)


@pytest.mark.parametrize("is_read_once", [True, False])
def test_a_column_that_is_empty_for_long_fits(tmp_path, is_read_once):
    rows = [{"advice": {"group": [], "similarity": None}}] * 1500 + [{"advice": {"group": [3], "similarity": 0.5}}]
    write_rows(tmp_path / "rows.parquet", iter(rows) if is_read_once else rows)
    assert read_rows(tmp_path / "rows.parquet") == rows


def test_rows_that_fit_no_schema_are_refused(tmp_path):
    with pytest.raises(InputError, match="Parquet schema"):
        write_rows(tmp_path / "rows.parquet", [{"prompt": "a"}, {"prompt": [{"role": "user"}]}])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_column_that_the_first_row_lacks_is_written(tmp_path, name):
    write_rows(tmp_path / name, [{"prompt": "a"}, {"prompt": "b", "source": "web"}])
    assert read_rows(tmp_path / name)[1] == {"prompt": "b", "source": "web"}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("rows.jsonl", [1.0, float("nan")], "column 'when' of row 2 .*write .parquet"),
        ("rows.jsonl.gz", [datetime.date(2026, 1, 1)], "column 'when' of row 1 .*write .parquet"),
        ("rows.jsonl", ["a", {"b": "\ud800"}], "column 'when' of row 2 .*surrogates not allowed\\)$"),
        ("rows.parquet", [1, "one"], "column 'when' does not fit one Parquet schema; write .jsonl"),
        ("rows.parquet", [1, 2**64], "column 'when' does not fit one Parquet schema; write .jsonl"),
        ("rows.parquet", ["a", "\ud800"], "column 'when' does not fit one Parquet schema: .*surrogates not allowed$"),
        ("rows.parquet", [{}], "do not fit one Parquet schema; write .jsonl"),
        ("rows.parquet", [2**53 + 1] * ROWS_OF_A_GROUP + [0.5], "do not fit one Parquet schema; write .jsonl"),
    ],
)
def test_what_a_kind_of_file_does_not_hold_is_told_before_it_is_written(tmp_path, name, values, message):
    with pytest.raises(InputError, match=message):
        check_rows_fit(tmp_path / name, [{"when": value} for value in values])
    check_rows_fit(tmp_path / name, [{"when": [values[0] if isinstance(values[0], int) else "today"]}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b"", "empty"),
        ("rows.jsonl", b"\n \n", "empty"),
        ("rows.jsonl", b'{"a": 1}\n{"a": \n', "row 2 is not valid JSON"),
        ("rows.jsonl", b'{"a": 1}\n[1]\n', "row 2 is not a JSON object"),
        ("rows.jsonl", b'{"a": 1}\n{"a": ' + b"[" * 10**5, "row 2 is nested too deeply"),
        ("rows.jsonl", b"\xff\xfe{}", "cannot be read"),
        ("rows.jsonl.gz", b"no gzip", "cannot be read"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "cannot be read"),
        ("rows.json", b"[]", "empty"),
        ("rows.json", b'{"a": 1}', "must be an array of objects"),
        ("rows.json", b'[{"a": 1}, [1]]', "row 2 is not a JSON object"),
        ("rows.json", b'[{"a": ', "is not valid JSON"),
        ("rows.json", b"\xff\xfe[]", "cannot be read"),
        ("rows.json", b"[" * 10**5, "nested too deeply"),
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


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet"])
def test_a_bit_of_a_text_that_has_flipped_is_found(tmp_path, name):
    path = tmp_path / name
    write_rows(path, ROWS)
    content = bytearray(path.read_bytes())
    place = content.find("ü".encode())
    content[place if place > 0 else len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read|is not a readable Parquet file"):
        read_rows(path)


def test_a_parquet_value_that_python_has_no_type_for_is_told(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"when": pyarrow.array([2**62], pyarrow.timestamp("us"))}), path)
    with pytest.raises(InputError, match="not a readable Parquet file: date value out of range"):
        read_rows(path)


def test_what_is_told_of_a_damaged_parquet_file_is_one_line(tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, ROWS)
    whole, told = path.read_bytes(), []
    for place in range(4, len(whole) // 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            read_rows(path)
        except InputError as error:
            told.append(str(error))
    assert any("page header" in line or "thrift" in line for line in told)
    assert not [line for line in told if "\n" in line]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=f"{name} is no regular file: rows are read more than once, so write them"):
        read_rows(tmp_path / name)
    with pytest.raises(InputError, match=r"folder\.jsonl is a folder, not a file"):
        read_rows(tmp_path / "folder.jsonl")


def test_a_missing_file():
    with pytest.raises(InputError, match="does not exist"):
        read_rows(Path("nothing.jsonl"))


def test_large_files_keep_their_order_and_are_read_as_they_are_needed(tmp_path):
    rows = [{"row": i} for i in range(2500)]  # more than two groups of Parquet
    for name in ("rows.parquet", "rows.jsonl"):
        write_rows(tmp_path / name, iter(rows))
        assert read_rows(tmp_path / name) == rows
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"row": 0}\n\n{"row": 1}\n{')
    waiting = iter_rows(broken)
    assert [next(waiting), next(waiting)] == rows[:2]
    with pytest.raises(InputError, match="row 3 is not valid JSON"):
        next(waiting)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_the_bytes_of_a_file_depend_on_its_rows_alone(tmp_path, name):
    contents = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / name, ROWS)
        contents.add((tmp_path / folder / name).read_bytes())
    assert len(contents) == 1


def test_a_failure_in_the_middle_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("before")

    def rows():
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(path, rows())
    with pytest.raises(ValueError, match="JSON compliant"):
        write_rows(path, [{"mean": float("nan")}])
    assert path.read_text() == "before"
    assert [left.name for left in tmp_path.iterdir()] == ["rows.jsonl"]


def test_where_nothing_can_be_written_it_is_told():
    with pytest.raises(InputError, match=r"/proc/rows\.jsonl cannot be written"):
        write_rows(Path("/proc/rows.jsonl"), ROWS)
