"""The command `bayesrm`: its parts import torch and transformers when they run, so that help needs neither."""

import logging
import signal
import sys
import warnings
from typing import Annotated

import typer

from bayesrm_fast.cli import (
    best_of_n,
    bonbon,
    calibrate,
    fit,
    info,
    report,
    rewardbench,
    score,
    select_pairs,
    serve,
    train,
)
from bayesrm_fast.cli.terminal import ShownWarnings, show_in_any_encoding, show_line
from bayesrm_fast.cli.torchrun import name_of_process
from bayesrm_fast.errors import InputError
from bayesrm_fast.versions import library_versions

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Reward models with uncertainty."
)
app.command()(train.train)
app.command()(fit.fit)
app.command()(calibrate.calibrate)
app.command()(score.score)
app.command("best-of-n")(best_of_n.best_of_n)
app.command()(bonbon.bonbon)
app.command("select-pairs")(select_pairs.select_pairs)
app.command()(report.report)
app.command()(rewardbench.rewardbench)
app.command()(serve.serve)
app.command()(info.info)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"bayesrm_fast {library_versions()['bayesrm_fast']}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def main() -> None:
    """Run the command line; bad input and errors of the file system end with one line and exit code 2.

    A run that is told to terminate removes its locks and scratch files first, as one that is interrupted does.
    """
    show_in_any_encoding()
    warnings.showwarning = ShownWarnings()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("bayesrm_fast").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except (InputError, OSError) as error:
        show_line(f"{name_of_process()}: {error}")
        sys.exit(2)


def _terminate(number: int, _: object) -> None:
    sys.exit(128 + number)
