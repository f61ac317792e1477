"""Rows in JSON Lines (also gzipped) and Parquet files."""

import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bayesrm_fast.errors import InputError
from bayesrm_fast.posterior import write_whole

KINDS = (".jsonl", ".jsonl.gz", ".parquet")


def kind_of(path: Path) -> str:
    """The kind of file by its ending.

    Raises:
        InputError: another ending.
    """
    for kind in KINDS:
        if path.name.endswith(kind):
            return kind
    raise InputError(f"{path}: the name must end in {', '.join(KINDS)}")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file, each a mapping; their columns are the caller's to check.

    Raises:
        InputError: a missing, unreadable, broken or empty file, by row where a row is at fault.
    """
    kind = kind_of(path)
    try:
        rows = _read_parquet(path) if kind == ".parquet" else _read_json_lines(path, kind)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise InputError(f"{path} is empty: there are no rows")
    return rows


def _read_json_lines(path: Path, kind: str) -> list[dict[str, Any]]:
    rows = []
    with (gzip.open if kind == ".jsonl.gz" else open)(path, "rt", encoding="utf-8") as lines:
        number = 0
        for line in lines:
            if not line.strip():
                continue
            number += 1
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, row {number} is not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}, row {number} is not a JSON object")
            rows.append(row)
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
        return rows
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as the path's ending says; the file appears whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    kind = kind_of(path)
    try:
        if kind == ".parquet":
            import pyarrow
            import pyarrow.parquet

            sink = pyarrow.BufferOutputStream()
            try:
                table = pyarrow.Table.from_pylist(list(rows))
            except pyarrow.ArrowException as error:
                raise InputError(f"{path}: the rows do not fit one Parquet schema; write .jsonl") from error
            pyarrow.parquet.write_table(table, sink)
            write_whole(path, sink.getvalue().to_pybytes())
        else:
            content = "".join(json_line(row) for row in rows).encode()
            write_whole(path, gzip.compress(content, mtime=0) if kind == ".jsonl.gz" else content)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def json_line(row: dict[str, Any]) -> str:
    """A row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def check_output(path: Path) -> None:
    """Raise InputError unless a file of a known kind can be written at `path`; leaves nothing behind."""
    kind_of(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path} cannot be written: the folder {path.absolute().parent} does not exist")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


class ResumableOutput:
    """Rows gathered in `<path>.partial`, which becomes the output once all are there.

    The partial file begins with a line that names the job. Rows arrive in chunks of fixed size, and a chunk counts only
    when it is whole: a resumed run then forms the very batches that an unbroken run forms.

    Args:
        path: the output.
        job: what the rows are computed from; a partial file of another job is not continued.
        chunk: rows of a chunk.
        resume: continue the partial file of an earlier run.

    Raises:
        InputError: resume is asked for and the partial file is another job's.
    """

    def __init__(self, path: Path, job: dict[str, Any], chunk: int, resume: bool) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.rows: list[dict[str, Any]] = []
        header = json_line({"job": job, "chunk": chunk})
        if resume and self.partial.exists():
            lines = self.partial.read_bytes().split(b"\n")[:-1]  # what follows the last line end is half a row
            if not lines or lines[0] + b"\n" != header.encode():
                raise InputError(
                    f"{self.partial} is of another model, input or version; remove it or run without --resume"
                )
            whole = (len(lines) - 1) // chunk * chunk
            self.rows = [json.loads(line) for line in lines[1 : whole + 1]]
        try:
            write_whole(self.partial, (header + "".join(json_line(row) for row in self.rows)).encode())
        except OSError as error:
            raise InputError(f"{self.partial} cannot be written: {error.strerror}") from error

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append a chunk, on disk when this returns."""
        rows = list(rows)
        with self.partial.open("ab") as file:
            file.write("".join(json_line(row) for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
        self.rows += rows

    def finish(self) -> None:
        """Write the output and remove the partial file."""
        write_rows(self.path, self.rows)
        self.partial.unlink()
