"""Rows in JSON Lines (also gzipped) and Parquet files; read from JSON arrays, too."""

import contextlib
import gzip
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bayesrm_fast.atomic import cannot_write, check_regular, written_whole
from bayesrm_fast.errors import InputError

if TYPE_CHECKING:
    import pyarrow

KINDS = (".jsonl", ".jsonl.gz", ".parquet")

READ_KINDS = (*KINDS, ".json")
"""A JSON array is read and not written: it is one value, which appears only when all of it is there."""

ROWS_OF_A_GROUP = 1024
"""Of a Parquet file, read or written at a time."""


def kind_of(path: Path, kinds: Sequence[str] = KINDS) -> str:
    """The kind of file by its ending, among those that are written or other ones.

    Raises:
        InputError: another ending.
    """
    for kind in kinds:
        if path.name.endswith(kind):
            return kind
    raise InputError(f"{path}: the name must end in {', '.join(kinds)}")


def iter_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file one by one, each a mapping; their columns are the caller's to check.

    Raises:
        InputError: a missing, unreadable, broken or empty file, by row where a row is at fault.
    """
    kind = kind_of(path, READ_KINDS)
    readers = {".parquet": _iter_parquet, ".json": _iter_json_array}
    rows = 0
    try:
        check_regular(path, "rows are read more than once, so write them to a file first")
        for row in readers[kind](path) if kind in readers else _iter_json_lines(path, kind):
            rows += 1
            yield row
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
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
            except RecursionError as error:
                raise InputError(f"{path}, row {number} is nested too deeply") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}, row {number} is not a JSON object")
            yield row


def _iter_json_array(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply") from error
    if not isinstance(rows, list):
        raise InputError(f"{path} must be an array of objects; one object a line is .jsonl")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number} is not a JSON object")
        yield row


def _iter_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=ROWS_OF_A_GROUP):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # or values that Python has no type for
        raise InputError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as the path's ending says, as they come; the file appears whole or not at all.

    Parquet's are read twice, first for their schema: a column may be empty for long before it holds something. Those of
    an iterator are kept in between.

    Raises:
        InputError: the file cannot be written, or does not hold the rows.
    """
    kind = kind_of(path)
    try:
        with written_whole(path) as beside:
            if kind == ".parquet":
                _write_parquet(path, beside, rows)
            else:
                # Without a name and a time in its head, a file has the same bytes whenever it is written.
                with beside.open("wb") as raw, _compressed(raw, kind) as file:
                    for number, row in enumerate(rows, start=1):
                        file.write(_json_bytes(path, number, row))
    except OSError as error:
        raise cannot_write(path, error) from error


def check_rows_fit(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Raise InputError, by row and column or by what Parquet asks for, where rows cannot be written at the path."""
    if kind_of(path) == ".parquet":
        import pyarrow

        _write_parquet(path, pyarrow.MockOutputStream(), rows)
        return
    for number, row in enumerate(rows, start=1):
        _json_bytes(path, number, row)


def _json_bytes(path: Path, number: int, row: dict[str, Any]) -> bytes:
    """A row's line; raises InputError by the column that JSON does not hold."""
    try:
        return json_line(row).encode()
    except (TypeError, ValueError):
        for name, value in row.items():
            try:
                json_line({name: value}).encode()
            except (TypeError, ValueError) as error:
                advice = "" if isinstance(error, UnicodeEncodeError) else "; write .parquet"
                raise InputError(
                    f"{path}: JSON does not hold column {name!r} of row {number} ({error}){advice}"
                ) from error
        raise


def _compressed(raw: IO[bytes], kind: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    if kind == ".jsonl.gz":
        return gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0)  # type: ignore[return-value]
    return contextlib.nullcontext(raw)


def _write_parquet(path: Path, where: "Path | pyarrow.NativeFile", rows: Iterable[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = list(rows) if isinstance(rows, Iterator) else rows
    schema = _schema_of(path, rows)
    with (
        _fitting(path, "the rows do"),
        pyarrow.parquet.ParquetWriter(where, schema, write_page_checksum=True) as writer,
    ):
        for group in _groups(rows):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def _schema_of(path: Path, rows: Iterable[dict[str, Any]]) -> "pyarrow.Schema":
    import pyarrow

    schema = pyarrow.schema([])
    for group in _groups(rows):
        for name in dict.fromkeys(name for row in group for name in row):  # a row may lack what others have
            with _fitting(path, f"column {name!r} does"):
                found = pyarrow.table({name: [row.get(name) for row in group]}).schema
                schema = pyarrow.unify_schemas([schema, found], promote_options="permissive")
    return schema


@contextlib.contextmanager
def _fitting(path: Path, what: str) -> Iterator[None]:
    """Raise InputError for rows that do not fit one schema."""
    import pyarrow

    try:
        yield
    except InputError:  # of the rows
        raise
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: {what} not fit one Parquet schema: {error}") from error
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise InputError(f"{path}: {what} not fit one Parquet schema; write .jsonl") from error


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    waiting = iter(rows)
    while group := list(itertools.islice(waiting, ROWS_OF_A_GROUP)):
        yield group


def json_line(row: dict[str, Any]) -> str:
    """A row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
