"""Output files whose computing may be killed and continued."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from bayesrm_fast.atomic import cannot_write, one_writer
from bayesrm_fast.cli.places import partial_of
from bayesrm_fast.cli.terminal import show_line
from bayesrm_fast.errors import InputError
from bayesrm_fast.text.files import json_line, write_rows

CHUNK = 64
"""Rows of an input file that are scored together; a resumed run continues at a multiple of it."""

T = TypeVar("T")


class ResumableOutput(Generic[T]):
    """Rows gathered in `<path>.partial`, which becomes the output once all are there.

    The partial file is JSON Lines, readable at any time. Its first line names the job. Every other holds a result, its
    number, and a hash over both, the job and the record that it was computed from: a row that was lost, doubled, moved
    or altered is found when a run is resumed, and computed again with all after it. Rows arrive in chunks of `CHUNK`,
    and a chunk counts only when it is whole: a resumed run then forms the very batches that an unbroken run forms. No
    more than a chunk is held in memory. An empty result is a record that gives no row: it is counted, and not written
    to the output.

    Args:
        path: the output, which no other process may be writing.
        job: what the rows are computed from, by names for people; a partial file of another job is not continued.
        records: all that results are computed from, dataclasses in their order; read as far as they are needed.
        resume: continue the partial file of an earlier run.

    Attributes:
        count: results that are there.

    Raises:
        InputError: another process writes the output, it cannot be written, or resume is asked for and the partial file
            is another job's.
    """

    def __init__(self, path: Path, job: dict[str, Any], records: Iterable[T], resume: bool) -> None:
        self.path = path
        self.partial = partial_of(path)
        self.count = 0
        self._job = {**job, "chunk": CHUNK}
        self._header = json_line({"job": self._job}).encode()
        self._records = iter(records)
        self._read_ahead: list[T] = []
        with contextlib.ExitStack() as held:
            held.enter_context(one_writer(path, "run"))
            try:
                if resume and self.partial.exists():
                    self._keep_whole_chunks()
                else:
                    self.partial.write_bytes(self._header)
            except OSError as error:
                raise cannot_write(self.partial, error) from error
            self._held = held.pop_all()

    def _keep_whole_chunks(self) -> None:
        with self.partial.open("r+b") as file:
            found = file.readline()
            if found != self._header:
                self._refuse_another_job(found)
                if found:
                    show_line(f"{self.partial} does not say whose rows it holds: beginning anew")
                file.seek(0)
                file.truncate()
                file.write(self._header)
                return
            end = file.tell()
            while chunk := self._next_chunk():
                lines = [file.readline() for _ in chunk]
                numbered = enumerate(zip(lines, chunk, strict=True), start=self.count + 1)
                broken = next((line for number, (line, one) in numbered if not self._proves(line, number, one)), None)
                if broken is not None:
                    self._read_ahead = chunk
                    if broken.endswith(b"\n"):  # else it is where a run was killed
                        show_line(f"{self.partial} is damaged: continuing after its row {self.count}")
                    break
                self.count += len(chunk)
                end = file.tell()
            file.truncate(end)

    def _refuse_another_job(self, header: bytes) -> None:
        """Raise InputError where a header is another job's, and not just damaged."""
        try:
            job = json.loads(header)["job"]
            names = [*self._job, *(name for name in job if name not in self._job)]
            other = [name for name in names if name not in job or name not in self._job or job[name] != self._job[name]]
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        if other:
            raise InputError(
                f"{self.partial} is of another run (what differs: {', '.join(other)}): "
                "remove it or run without --resume"
            )

    def _next_chunk(self) -> list[T]:
        return list(itertools.islice(self._records, CHUNK))

    def _proves(self, line: bytes, number: int, record: T) -> bool:
        """Whether a line of the partial file is whole, and the result of this record at this place."""
        try:
            row = json.loads(line)
            return line.endswith(b"\n") and row == self._proven(row["result"], number, record)
        except (ValueError, TypeError, KeyError, RecursionError):
            return False

    def _proven(self, result: dict[str, Any], number: int, record: T) -> dict[str, Any]:
        compared = [getattr(record, field.name) for field in dataclasses.fields(record) if field.compare]  # type: ignore[arg-type]
        told = f"{number}\n{compared!r}\n{json_line(result)}"
        return {
            "row": number,
            "sha256": hashlib.sha256(self._header + told.encode("utf-8", "surrogatepass")).hexdigest(),
            "result": result,
        }

    def chunks(self) -> Iterator[list[T]]:
        """The records whose results are not there yet, in chunks; each goes back into `add`."""
        if self._read_ahead:
            yield self._read_ahead
        while chunk := self._next_chunk():
            yield chunk

    def add(self, chunk: Sequence[T], results: Iterable[dict[str, Any]]) -> None:
        """Append the results of a chunk, on disk when this returns.

        Raises:
            InputError: they cannot be written; what was there before is kept for another run.
        """
        pairs = zip(chunk, results, strict=True)
        lines = [json_line(self._proven(row, number, one)) for number, (one, row) in enumerate(pairs, self.count + 1)]
        try:
            with self.partial.open("ab") as file:
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.partial, error) from error
        self.count += len(lines)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The results that are there, one by one, without the empty ones.

        Raises:
            InputError: something else has changed the partial file.
        """
        number = 0
        try:
            with self.partial.open("rb") as file:
                is_ours = file.readline() == self._header
                for number, line in enumerate(file, start=1):
                    row = json.loads(line)
                    is_ours = is_ours and row["row"] == number
                    if row["result"]:
                        yield row["result"]
        except (OSError, ValueError, TypeError, KeyError):
            is_ours = False
        if not is_ours or number != self.count:
            raise InputError(f"{self.partial} was changed by something else while it was written: run again")

    def finish(self, total: int, kept: Iterable[dict[str, Any]] | None = None) -> None:
        """Write the output and remove the partial file.

        Args:
            total: rows that the input had when the run began.
            kept: columns that stay beside each result, to be had more than once; where both have one, the result's.

        Raises:
            InputError: the output cannot be written, something else has changed the partial file, or there are more or
                fewer rows.
        """
        if self.count != total:
            raise InputError(f"the input had {total} rows, and {self.count} were read: {self.path} is not written")
        write_rows(self.path, self if kept is None else _Beside(self, kept))
        try:
            self.partial.unlink()
        except OSError as error:
            raise cannot_write(self.partial, error) from error
        self.close()

    def close(self) -> None:
        """Let another run have the output."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Beside:
    """Results, each with the columns that stay beside it."""

    def __init__(self, results: Iterable[dict[str, Any]], kept: Iterable[dict[str, Any]]) -> None:
        self._results = results
        self._kept = kept

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for result, columns in zip(self._results, self._kept, strict=True):
            yield result | {name: value for name, value in columns.items() if name not in result}
