"""Columns that no command reads."""

import datetime

import pyarrow
import pyarrow.parquet
import pytest
from tiny import words

from bayesrm_fast import InputError
from bayesrm_fast.cli.kept_columns import KeptColumns
from bayesrm_fast.text.files import read_rows, write_rows

ROWS = [{"prompt": words(3, i), "responses": [words(2, 9 * i), words(4, i)], "id": f"row {i}"} for i in range(5)]
ROWS[1]["source"] = {"url": "https://example.org", "pages": [3]}


def test_what_is_read_is_not_kept(tmp_path):
    write_rows(tmp_path / "rows.jsonl", ROWS)
    kept = KeptColumns(tmp_path / "rows.jsonl", {"prompt", "responses"})
    assert (
        list(kept)
        == list(kept)
        == [{"id": row["id"]} | ({"source": row["source"]} if "source" in row else {}) for row in ROWS]
    )


@pytest.mark.parametrize("command", ["score", "best-of-n"])
@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
def test_columns_that_a_command_does_not_read_stay_beside_its_results(model_folder, tmp_path, bayesrm, command, output):
    rows = [row | {"gold": [0.5, 1.0], "mean": "of the writer"} for row in ROWS]
    write_rows(tmp_path / "rows.jsonl", rows)
    bayesrm(command, model_folder, tmp_path / "rows.jsonl", tmp_path / output)
    found = read_rows(tmp_path / output)
    for name in ("id", "gold"):
        assert [row[name] for row in found] == [row[name] for row in rows]
    assert [row.get("source") for row in found] == [row.get("source") for row in rows]
    assert all("responses" not in row and row["mean"] != "of the writer" for row in found)


def test_a_column_that_the_output_cannot_hold_is_told_before_the_model_is_loaded(tmp_path, refused, no_model):
    rows = [row | {"when": datetime.datetime(2026, 1, 1)} for row in ROWS]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    line = refused("score", tmp_path / "no model", tmp_path / "rows.parquet", tmp_path / "out.jsonl")
    assert "JSON does not hold column 'when' of row 1" in line
    assert "write .parquet; or take columns that are not wanted out of" in line
    KeptColumns(tmp_path / "rows.parquet", {"prompt"}).check_fit(tmp_path / "out.parquet")
    with pytest.raises(InputError, match="'when'"):
        KeptColumns(tmp_path / "rows.parquet", {"prompt"}).check_fit(tmp_path / "out.jsonl.gz")
