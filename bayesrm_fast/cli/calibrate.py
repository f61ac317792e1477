"""`bayesrm calibrate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bayesrm_fast.atomic import check_folder
from bayesrm_fast.cli.arguments import AsJson, Labelled, MaxBatchTokens, Model, precision
from bayesrm_fast.cli.models import load_fitted
from bayesrm_fast.cli.places import check_apart, files_in
from bayesrm_fast.cli.terminal import progress_bar, show_summary
from bayesrm_fast.cli.torchrun import is_first, one_writer_of_all, process_group


def calibrate(
    model: Model,
    pairs: Labelled,
    prior_precision: Annotated[str, typer.Option(help="validation, evidence, margins or a number.")] = "validation",
    plot: Annotated[Path | None, typer.Option(help="Draw a reliability diagram into this file.")] = None,
    max_batch_tokens: MaxBatchTokens = None,
    as_json: AsJson = False,
) -> None:
    """Choose prior precision and temperature by held-out pairs or steps, and save them with the posterior."""
    from bayesrm_fast.plots import check_plot
    from bayesrm_fast.posterior.files import save_posterior
    from bayesrm_fast.saved.folders import local_folder
    from bayesrm_fast.text.files import read_rows
    from bayesrm_fast.text.steps import is_stepwise, labelled_records

    chosen = precision(prior_precision)
    folder = local_folder(model)
    check_folder(folder)
    if plot is not None:
        check_plot(plot)
        check_apart(plot, [pairs], "the input")
        check_apart(plot, files_in(folder), "a file of the model")
    rows = read_rows(pairs)
    labelled = labelled_records(rows, str(pairs))
    with process_group() as group, one_writer_of_all(folder):
        loaded = load_fitted(folder, max_batch_tokens)
        if is_stepwise(rows[0]):
            loaded.segment_encoder  # noqa: B018  (raises for a model that scores whole responses)
        with progress_bar("calibrating") as tell:
            found = loaded.calibrate(labelled, chosen, group=group, progress=tell if is_first() else None)
        if is_first():
            save_posterior(loaded.fitted, folder)
    if not is_first():
        return
    if plot is not None:
        found.plot(plot)
    shown: dict[str, Any] = {
        "steps" if is_stepwise(rows[0]) else "pairs": found.pairs,
        "prior_precision": found.prior_precision,
        "temperature": found.temperature,
    }
    for when, one in (("before", found.before), ("after", found.after)):
        shown |= {f"{name}_{when}": getattr(one, name) for name in ("accuracy", "nll", "brier", "ece")}
    show_summary(shown, as_json)
