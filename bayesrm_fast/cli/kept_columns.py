"""Columns of an input that no command reads, and that stay beside its results."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from bayesrm_fast.errors import InputError
from bayesrm_fast.text.files import check_rows_fit, iter_rows


class KeptColumns:
    """The columns of a file's rows that are not read, to be had as often as they are wanted.

    Args:
        input_file: the file.
        read: names of the columns that are read.
    """

    def __init__(self, input_file: Path, read: Collection[str]) -> None:
        self._input_file = input_file
        self._read = read

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in iter_rows(self._input_file):
            yield {name: value for name, value in row.items() if name not in self._read}

    def check_fit(self, output: Path) -> None:
        """Raise InputError where the output's kind of file does not hold them: before the work, not after it."""
        try:
            check_rows_fit(output, self)
        except InputError as error:
            raise InputError(f"{error}; or take columns that are not wanted out of {self._input_file}") from error
