"""Progress on a terminal, and nothing of the kind anywhere else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SHOWN_AFTER = 2.0
"""Seconds before a progress bar appears."""


@contextmanager
def progress_bar(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and remaining time, on a terminal only and only for what takes longer than two seconds.

    Args:
        what: what is being done.
        console: where; the bar goes away when it is done.

    Yields:
        A function to be told what is done and the total.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f}/s"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    task = bar.add_task(what, rate=0.0)
    start = time.monotonic()

    def tell(done: int, total: int) -> None:
        elapsed = time.monotonic() - start
        if elapsed > SHOWN_AFTER:
            bar.start()
        bar.update(task, completed=done, total=total, rate=done / max(elapsed, 1e-9))

    try:
        yield tell
    finally:
        bar.stop()


def quiet_transformers() -> None:
    """Silence the loading reports and bars that transformers prints by itself."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
