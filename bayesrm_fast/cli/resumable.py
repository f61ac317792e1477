"""Output files whose computing may be killed and continued."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Self

from bayesrm_fast.atomic import cannot_write
from bayesrm_fast.cli.jobs import CHUNK
from bayesrm_fast.errors import InputError
from bayesrm_fast.text.files import json_line, write_rows

try:
    import fcntl
except ImportError:  # Windows has no lock of this kind
    fcntl = None  # type: ignore[assignment]


class ResumableOutput:
    """Rows gathered in `<path>.partial`, which becomes the output once all are there.

    The partial file is JSON Lines, readable at any time, and begins with a line that names the job. Rows arrive in
    chunks of `CHUNK`, and a chunk counts only when it is whole: a resumed run then forms the very batches that an
    unbroken run forms. No more than a chunk is held in memory.

    Args:
        path: the output.
        job: what the rows are computed from; a partial file of another job is not continued.
        resume: continue the partial file of an earlier run.

    Attributes:
        count: rows that are there.

    Raises:
        InputError: resume is asked for and the partial file is another job's.
    """

    def __init__(self, path: Path, job: dict[str, Any], resume: bool) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.count = 0
        header = json_line({"job": job, "chunk": CHUNK}).encode()
        try:
            self._held = self.partial.open("ab")  # as long as this is open, because two runs' rows would mix
        except OSError as error:
            raise cannot_write(self.partial, error) from error
        try:
            _lock(self._held, self.partial)
            if resume:
                self._keep_whole_chunks(header)
            else:
                self.partial.write_bytes(header)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise cannot_write(self.partial, error) from error
            raise

    def _keep_whole_chunks(self, header: bytes) -> None:
        with self.partial.open("r+b") as file:
            found = file.readline()
            if header.startswith(found) and found != header:  # killed before the first row
                file.seek(0)
                file.truncate()
                file.write(header)
                return
            if found != header:
                raise InputError(
                    f"{self.partial} is of another model, input or version; remove it or run without --resume"
                )
            end, lines = file.tell(), 0
            while line := file.readline():
                if not _is_row(line):  # half a row, or what a machine that went down has left
                    break
                lines += 1
                if lines % CHUNK == 0:
                    end, self.count = file.tell(), lines
            file.truncate(end)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append a chunk, on disk when this returns.

        Raises:
            InputError: it cannot be written; what was there before is kept for another run.
        """
        lines = [json_line(row) for row in rows]
        try:
            with self.partial.open("ab") as file:
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.partial, error) from error
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
        self.close()

    def close(self) -> None:
        """Let another run have the partial file."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{path} is being written by another run") from error


def _is_row(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False
