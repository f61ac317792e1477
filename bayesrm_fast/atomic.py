"""Files and folders that appear whole or not at all, each written by one process at a time."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from bayesrm_fast.errors import InputError

SAVE_PATIENCE = 300.0
"""Seconds that a save waits for another process's save into the same folder."""


@contextlib.contextmanager
def one_writer(path: Path, purpose: str, patience: float = 0.0) -> Iterator[None]:
    """Be the one process that writes a file or folder; the lock ends with the process, however that ends.

    Args:
        path: what is written. A folder's lock lies in it where it is there, any other beside `path`.
        purpose: what is locked out: runs and the saves within them have a lock each.
        patience: seconds to wait for another process.

    Raises:
        InputError: another process writes there, or nothing can be written there.
    """
    place = _lock_file(path, purpose)
    lock = FileLock(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience)
    except Timeout:
        raise InputError(f"{path} is being written by another run") from None
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            place.unlink()  # while it is held: whoever opened it meanwhile sees that it is gone, and opens another
        lock.release()


def _lock_file(path: Path, purpose: str) -> Path:
    if path.is_dir():
        return path / f".{purpose}.lock"
    return path.with_name(f".{path.name}.{purpose}.lock")


def unfinished(path: Path) -> Path:
    """Where `written_whole` writes what becomes the file `path`."""
    return path.with_name(f".{path.name}.writing")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes the file `path`, so that it is never seen half-written.

    It has one name, so that the next writer replaces what a killed one has left. Two at once need `one_writer`.
    """
    beside = unfinished(path)
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())  # a disk may only tell now that it is full
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced_whole(folder: Path, owned: Iterable[str] = ()) -> Iterator[Path]:
    """An empty folder to write into, whose files then become `folder`'s: all of them, or none after any exception.

    A folder that was not there appears at once. In one that was, new files take the place of old ones of their names,
    `owned` files that were not written again go, and all others stay. What a process leaves that is killed meanwhile
    is settled by `settle` or by the next save. Another process that saves to the folder is waited for.

    Args:
        folder: what is written.
        owned: names of files that are part of what is written, in this version of it or not.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        with _one_save(folder):
            if folder.is_dir():
                _settle_all(folder)
                # Inside, so that a folder which is a mount of its own can be moved into.
                scratch = Path(tempfile.mkdtemp(dir=folder, prefix=_SCRATCH))
                try:
                    (scratch / _NEW).mkdir()
                    yield scratch / _NEW
                    _exchange(folder, scratch, owned)
                finally:
                    _settle(folder, scratch)
            else:
                parent, prefix = folder.absolute().parent, f".{folder.name}{_SCRATCH}"
                for left in _beginning_with(prefix, parent):
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as made:
                    new = Path(made) / _NEW
                    new.mkdir()
                    yield new
                    os.rename(new, folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    except InputError as error:
        if isinstance(error.__cause__, OSError):  # of a place in the new folder, which nobody knows
            raise cannot_write(folder, error.__cause__) from error
        raise


def settle(folder: Path) -> None:
    """Make a folder again what it was before or should have become by a save that was killed while it moved files.

    Raises:
        InputError: there is such a save, and the folder cannot be written.
    """
    if any((scratch / _ARRIVING).is_dir() or _is_leaving(scratch) for scratch in _beginning_with(_SCRATCH, folder)):
        try:
            with _one_save(folder):
                _settle_all(folder)
        except (OSError, InputError) as error:
            raise InputError(f"a save was killed in the middle and cannot be undone or finished: {error}") from error


# A save into a folder that is there has a scratch folder in it. New files are made in _NEW. Then old ones move to _OLD,
# _NEW is renamed to _ARRIVING, and its files move to the folder. Until the renaming, what is in _OLD has to come back;
# after it, what is in _ARRIVING has to go on.
_SCRATCH, _NEW, _OLD, _ARRIVING = ".saving-", "new", "old", "arriving"


@contextlib.contextmanager
def _one_save(folder: Path) -> Iterator[None]:
    while True:
        was_there = folder.is_dir()
        with one_writer(folder, "save", SAVE_PATIENCE):
            if folder.is_dir() == was_there:  # else the lock is another one now
                yield
                return


def _beginning_with(prefix: str, folder: Path) -> list[Path]:
    if not folder.is_dir() or not os.access(folder, os.R_OK):  # whoever reads it next says why not
        return []
    return [path for path in folder.iterdir() if path.name.startswith(prefix)]


def _is_leaving(scratch: Path) -> bool:
    return (scratch / _NEW).is_dir() and (scratch / _OLD).is_dir() and any((scratch / _OLD).iterdir())


def _settle_all(folder: Path) -> None:
    for scratch in _beginning_with(_SCRATCH, folder):
        _settle(folder, scratch)


def _settle(folder: Path, scratch: Path) -> None:
    """Finish or undo what was begun in a scratch folder, and remove it."""
    waiting: list[Path] = []
    if (scratch / _ARRIVING).is_dir():
        waiting = list((scratch / _ARRIVING).iterdir())
    elif _is_leaving(scratch):
        waiting = list((scratch / _OLD).iterdir())
    for path in waiting:
        os.rename(path, folder / path.name)
    shutil.rmtree(scratch, ignore_errors=True)


def _exchange(folder: Path, scratch: Path, owned: Iterable[str]) -> None:
    new, old, arriving = scratch / _NEW, scratch / _OLD, scratch / _ARRIVING
    incoming = sorted(path.name for path in new.iterdir())
    outgoing = [name for name in sorted({*incoming, *owned}) if os.path.lexists(folder / name)]
    old.mkdir()
    moves = [
        *((folder / name, old / name) for name in outgoing),
        (new, arriving),
        *((arriving / name, folder / name) for name in incoming),
    ]
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


def check_regular(path: Path, advice: str = "") -> None:
    """Raise InputError where there is something that is no regular file: opening a pipe waits for whoever writes to it.

    Args:
        path: what is read; nothing need be there.
        advice: for whoever gave a pipe.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no regular file{advice and ': '}{advice}")


def cannot_write(path: Path, error: OSError) -> InputError:
    """What a caller is told of an error of the file system."""
    return InputError(f"{path} cannot be written: {error.strerror or error}")
