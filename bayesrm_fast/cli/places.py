"""What a command reads and writes, checked before the work."""

import os
from collections.abc import Iterable
from pathlib import Path

from bayesrm_fast.atomic import check_place, check_regular, unfinished
from bayesrm_fast.errors import InputError


def partial_of(output: Path) -> Path:
    """Where the rows of an output are gathered until all are there."""
    return output.with_name(f"{output.name}.partial")


def check_output(output: Path, input_file: Path, model: Path) -> None:
    """Raise InputError unless rows can be written at `output`, as its ending says; leaves nothing behind."""
    from bayesrm_fast.text.files import kind_of

    kind_of(output)
    check_writable(output, input_file, model)


def check_writable(output: Path, input_file: Path, model: Path) -> None:
    """Raise InputError unless a file can be written at `output`; leaves nothing behind.

    Neither it nor what is written beside it on the way may be the input or a file of the model, whatever it is called:
    links and names that differ in case alone are told by the files themselves.
    """
    folder = output.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{output} cannot be written: the folder {folder} does not exist")
    check_outside(output, model)
    for path in (output, partial_of(output), unfinished(output)):
        check_regular(path)
        check_apart(path, [input_file], "the input")
        check_apart(path, files_in(model), "a file of the model")
    check_place(output, folder)
    if output.exists() and not os.access(output, os.W_OK):
        raise InputError(f"{output} cannot be written: Permission denied")


def check_outside(output: Path, model: Path) -> None:
    """Raise InputError where a file is in the model's folder, be it there yet or not."""
    folder = output.absolute().parent.resolve()
    if model.is_dir() and any(place.is_dir() and place.samefile(model) for place in (folder, *folder.parents)):
        raise InputError(f"{output} is in the model's folder: give a place outside it")


def check_apart(path: Path, others: Iterable[Path], what: str) -> None:
    """Raise InputError where `path` is the same file as one of the others, which are `what`."""
    if path.exists() and any(other.exists() and path.samefile(other) for other in others):
        raise InputError(f"{path} is {what}: give another name for the output")


def files_in(folder: Path) -> list[Path]:
    """All files under a folder; none where there is no such folder."""
    return [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
