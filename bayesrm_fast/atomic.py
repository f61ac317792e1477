"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from bayesrm_fast.errors import InputError


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes the file `path`, so that it is never seen half-written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced_whole(folder: Path, owned: Iterable[str] = ()) -> Iterator[Path]:
    """An empty folder to write into, whose files then become `folder`'s: all of them, or none after any exception.

    A folder that was not there appears at once. In one that was, new files take the place of old ones of their names,
    `owned` files that were not written again go, and all others stay.

    Args:
        folder: what is written.
        owned: names of files that are part of what is written, in this version of it or not.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        if folder.is_dir():
            # Inside, so that a folder which is a mount of its own can be moved into.
            with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
                new, old = Path(scratch) / "new", Path(scratch) / "old"
                new.mkdir()
                yield new
                old.mkdir()
                _exchange(folder, new, old, owned)
        else:
            parent = folder.absolute().parent
            parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=parent, prefix=f".{folder.name}-") as scratch:
                new = Path(scratch) / "new"
                new.mkdir()
                yield new
                os.rename(new, folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    except InputError as error:
        if isinstance(error.__cause__, OSError):  # of a place in the new folder, which nobody knows
            raise cannot_write(folder, error.__cause__) from error
        raise


def _exchange(folder: Path, new: Path, old: Path, owned: Iterable[str]) -> None:
    incoming = sorted(path.name for path in new.iterdir())
    outgoing = [name for name in sorted({*incoming, *owned}) if os.path.lexists(folder / name)]
    moves = [(folder / name, old / name) for name in outgoing] + [(new / name, folder / name) for name in incoming]
    begun: list[tuple[Path, Path]] = []
    try:
        for here, there in moves:
            begun.append((here, there))  # first, because an interrupt may come as soon as the file has moved
            os.rename(here, there)
    except BaseException:
        for here, there in reversed(begun):
            if os.path.lexists(there) and not os.path.lexists(here):  # another process may have taken it away
                os.rename(there, here)
        raise


def check_folder(folder: Path) -> None:
    """Raise InputError unless a folder can be made, or written to where it exists; leaves nothing behind."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} exists and is not a folder")
    parent = next(ancestor for ancestor in (folder, *folder.absolute().parents) if ancestor.exists())
    check_place(folder, parent)


def check_place(path: Path, parent: Path) -> None:
    """Raise InputError about `path` unless a file can be made in the folder `parent`; leaves nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> InputError:
    """What a caller is told of an error of the file system."""
    return InputError(f"{path} cannot be written: {error.strerror or error}")
