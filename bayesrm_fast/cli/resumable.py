"""Output files whose computing may be killed and continued."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bayesrm_fast.atomic import cannot_write
from bayesrm_fast.cli.jobs import CHUNK
from bayesrm_fast.errors import InputError
from bayesrm_fast.text.files import json_line, write_rows


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
            if resume and self.partial.exists():
                self._keep_whole_chunks(header)
            else:
                self.partial.write_bytes(header)
        except OSError as error:
            raise cannot_write(self.partial, error) from error

    def _keep_whole_chunks(self, header: bytes) -> None:
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
