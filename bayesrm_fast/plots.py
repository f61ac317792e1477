"""Figures in files, drawn by matplotlib, which is an extra."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bayesrm_fast.atomic import cannot_write, check_place
from bayesrm_fast.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POSTERIOR, REWARD_ALONE = "#1b6fb3", "#d1741f"
"""Colours of what takes the uncertainty into account, and of what does not."""

DOTS_PER_INCH = 130


def check_plot(path: Path) -> None:
    """Raise InputError unless a plot can be drawn into a file; leaves nothing behind."""
    kinds = new_figure(1, 1).canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise InputError(f"{path} cannot be written: its name must end in one of {', '.join(sorted(kinds))}")
    try:
        is_folder = path.is_dir()
    except OSError as error:  # of a name that is too long
        raise cannot_write(path, error) from error
    if is_folder:
        raise InputError(f"{path} is a folder")
    check_place(path, path.absolute().parent)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of a size in inches.

    Raises:
        InputError: there is no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("a plot needs the extra: pip install 'bayesrm_fast[eval]'") from error
    return Figure(figsize=(width, height), layout="constrained")


@contextlib.contextmanager
def figure_in(path: str | Path, width: float, height: float) -> "Iterator[Figure]":
    """A figure to draw, of a size in inches, which is written when it is left.

    Args:
        path: whose ending says the format.
        width, height: in inches.

    Raises:
        InputError: there is no matplotlib, or the file cannot be written.
    """
    path = Path(path)
    check_plot(path)
    figure = new_figure(width, height)
    yield figure
    try:
        figure.savefig(path, dpi=DOTS_PER_INCH)
    except OSError as error:
        raise cannot_write(path, error) from error
    except RuntimeError as error:  # of a format that is written by a program, such as LaTeX
        raise InputError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error
