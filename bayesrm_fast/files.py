"""Rows in JSON Lines (also gzipped) and Parquet files."""

import contextlib
import gzip
import itertools
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from bayesrm_fast.errors import InputError
from bayesrm_fast.posterior_files import written_whole

KINDS = (".jsonl", ".jsonl.gz", ".parquet")

ROWS_OF_A_GROUP = 1024
"""Of a Parquet file, read or written at a time."""


def kind_of(path: Path) -> str:
    """The kind of file by its ending.

    Raises:
        InputError: another ending.
    """
    for kind in KINDS:
        if path.name.endswith(kind):
            return kind
    raise InputError(f"{path}: the name must end in {', '.join(KINDS)}")


def iter_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file one by one, each a mapping; their columns are the caller's to check.

    Raises:
        InputError: a missing, unreadable, broken or empty file, by row where a row is at fault.
    """
    kind = kind_of(path)
    rows = 0
    try:
        for row in _iter_parquet(path) if kind == ".parquet" else _iter_json_lines(path, kind):
            rows += 1
            yield row
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise InputError(f"{path} is empty: there are no rows")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file at once; raises what `iter_rows` does."""
    return list(iter_rows(path))


def _iter_json_lines(path: Path, kind: str) -> Iterator[dict[str, Any]]:
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
            yield row


def _iter_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_OF_A_GROUP):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as the path's ending says, as they come; the file appears whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    kind = kind_of(path)
    try:
        with written_whole(path) as beside:
            if kind == ".parquet":
                _write_parquet(path, beside, rows)
            else:
                # Without a name and a time in its head, a file has the same bytes whenever it is written.
                with beside.open("wb") as raw, _compressed(raw, kind) as file:
                    for row in rows:
                        file.write(json_line(row).encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def _compressed(raw: IO[bytes], kind: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    if kind == ".jsonl.gz":
        return gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0)  # type: ignore[return-value]
    return contextlib.nullcontext(raw)


def _write_parquet(path: Path, beside: Path, rows: Iterable[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    waiting = iter(rows)
    writer = None
    try:
        with contextlib.ExitStack() as stack:
            while group := list(itertools.islice(waiting, ROWS_OF_A_GROUP)):
                table = pyarrow.Table.from_pylist(group, None if writer is None else writer.schema)
                if writer is None:
                    writer = stack.enter_context(pyarrow.parquet.ParquetWriter(beside, table.schema))
                writer.write_table(table)
    except (pyarrow.ArrowException, ValueError) as error:
        raise InputError(f"{path}: the rows do not fit one Parquet schema; write .jsonl") from error


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

    The partial file is JSON Lines, readable at any time, and begins with a line that names the job. Rows arrive in
    chunks of fixed size, and a chunk counts only when it is whole: a resumed run then forms the very batches that an
    unbroken run forms. No more than a chunk is held in memory.

    Args:
        path: the output.
        job: what the rows are computed from; a partial file of another job is not continued.
        chunk: rows of a chunk.
        resume: continue the partial file of an earlier run.

    Attributes:
        count: rows that are there.

    Raises:
        InputError: resume is asked for and the partial file is another job's.
    """

    def __init__(self, path: Path, job: dict[str, Any], chunk: int, resume: bool) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.count = 0
        header = json_line({"job": job, "chunk": chunk}).encode()
        try:
            if resume and self.partial.exists():
                self._keep_whole_chunks(header, chunk)
            else:
                self.partial.write_bytes(header)
        except OSError as error:
            raise InputError(f"{self.partial} cannot be written: {error.strerror}") from error

    def _keep_whole_chunks(self, header: bytes, chunk: int) -> None:
        with self.partial.open("r+b") as file:
            if file.readline() != header:
                raise InputError(
                    f"{self.partial} is of another model, input or version; remove it or run without --resume"
                )
            end, lines = file.tell(), 0
            while line := file.readline():
                if not line.endswith(b"\n"):  # half a row
                    break
                lines += 1
                if lines % chunk == 0:
                    end, self.count = file.tell(), lines
            file.truncate(end)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append a chunk, on disk when this returns."""
        lines = [json_line(row) for row in rows]
        with self.partial.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self.count += len(lines)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows that are there, one by one."""
        with self.partial.open("rb") as file:
            file.readline()
            for line in file:
                yield json.loads(line)

    def finish(self) -> None:
        """Write the output and remove the partial file."""
        write_rows(self.path, self.rows())
        self.partial.unlink()
