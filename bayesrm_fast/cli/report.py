"""`bayesrm report`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bayesrm_fast.atomic import cannot_write, check_place, check_regular, unfinished, written_whole
from bayesrm_fast.cli.arguments import AsJson
from bayesrm_fast.cli.imports import without_collections
from bayesrm_fast.cli.places import check_apart
from bayesrm_fast.cli.terminal import show_summary
from bayesrm_fast.errors import InputError


def report(
    scores: Annotated[Path, typer.Argument(help="What `bayesrm score` wrote.")],
    output: Annotated[Path, typer.Argument(help="The page, as .html.")],
    input_file: Annotated[
        Path | None,
        typer.Option("--input", help="The file that was scored, for its texts, labels and gold."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about a scored file: scores, uncertainties, and what they are worth where that is known."""
    with without_collections():
        from bayesrm_fast.evaluate.scored_file import known_of, read_scored_file
        from bayesrm_fast.evaluate.scores_page import page
        from bayesrm_fast.evaluate.scores_report import scores_report
        from bayesrm_fast.plots import new_figure

    _check_output(output, [scores] if input_file is None else [scores, input_file])
    new_figure(1, 1)  # which raises where the extra is not installed, before the work
    scored = read_scored_file(scores)
    told = scores_report(scored, None if input_file is None else known_of(scored, input_file))
    text = page(told)
    try:
        with written_whole(output) as beside:
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(output, error) from error
    summary: dict[str, Any] = {"output": str(output), "kind": scored.kind, "rows": len(scored.rows)}
    if told.probabilities:
        summary |= {"labelled": told.labelled}
        summary |= {name: getattr(told.probabilities["posterior"], name) for name in ("accuracy", "nll", "ece")}
    if told.gold is not None:
        summary |= {"prompts_with_gold": told.gold.prompts, "gain_of_the_std": told.gold.gain}
    show_summary(summary, as_json)


def _check_output(output: Path, inputs: list[Path]) -> None:
    if output.suffix != ".html":
        raise InputError(f"{output}: the name must end in .html")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{output} cannot be written: the folder {folder} does not exist")
    for path in (output, unfinished(output)):
        check_regular(path)
        check_apart(path, inputs, "an input")
    check_place(output, folder)
