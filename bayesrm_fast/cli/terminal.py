"""What the command shows: tables, progress, warnings; on a terminal only where only a person wants it."""

import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

stdout = Console()
stderr = Console(stderr=True)

SHOWN_AFTER = 2.0
"""Seconds before a progress bar appears."""


def show_in_any_encoding() -> None:
    """Have standard output replace what its encoding does not hold, as standard error does by itself."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@contextmanager
def progress_bar(what: str, console: Console = stderr) -> Iterator[Callable[[int, int], None]]:
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


def show_summary(values: Mapping[str, Any], as_json: bool) -> None:
    """Print names and values as they are, as a table or as JSON."""
    if as_json:
        stdout.print_json(json.dumps(values))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in values.items():
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        table.add_row(*map(Text, (name.replace("_", " "), shown)))
    stdout.print(table)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> None:
    """Print rows as they are under the names of their columns; those after the first `texts` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < texts else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    stdout.print(table)
    stdout.print()


def show_line(line: str) -> None:
    """Print one line for people on standard error, whatever characters it holds."""
    stderr.print(line, markup=False, highlight=False, soft_wrap=True)


class ShownWarnings:
    """In place of `warnings.showwarning`: one line for what concerns a user, nothing for what does not.

    Warnings of a file's rows come with every chunk of them: of those that differ in numbers alone, two are shown.

    Args:
        show: what shows a line.
    """

    def __init__(self, show: Callable[[str], None] = show_line) -> None:
        self.show = show
        self.shown: dict[str, set[str]] = {}

    def __call__(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        """As `warnings.showwarning` is called."""
        if not issubclass(category, UserWarning) or issubclass(category, FutureWarning):
            return
        text = str(message)
        alike = self.shown.setdefault(re.sub(r"\d+", "", text), set())
        if text not in alike and len(alike) < 2:
            self.show(f"warning: {text}{' (later ones like it are not shown)' if alike else ''}")
            alike.add(text)


def quiet_transformers() -> None:
    """Silence the loading reports and bars that transformers prints by itself."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
