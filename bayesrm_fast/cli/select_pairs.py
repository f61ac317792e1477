"""`bayesrm select-pairs`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from bayesrm_fast.atomic import one_writer
from bayesrm_fast.cli.arguments import AsJson, MaxBatchTokens, Model, Output
from bayesrm_fast.cli.jobs import check_unchanged, file_sha256
from bayesrm_fast.cli.models import load_fitted
from bayesrm_fast.cli.places import check_output
from bayesrm_fast.cli.terminal import progress_bar, show_summary
from bayesrm_fast.errors import InputError

if TYPE_CHECKING:
    from bayesrm_fast.select.active import SelectedPairs, Strategy

ADDED = ("rank", "information", "probability", "std", "pair")
"""Columns of the output that the input may not have."""


def select_pairs(
    model: Model,
    input_file: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Rows of prompt, chosen, rejected in any order, or of responses.")
    ],
    output: Output,
    count: Annotated[int, typer.Option(help="Pairs to select.")],
    strategy: Annotated[str, typer.Option(help="information, uncertainty or random.")] = "information",
    seed: Annotated[int, typer.Option(help="Of the strategy random.")] = 0,
    shortlist: Annotated[
        int | None, typer.Option(help="Pairs that are looked at together. Default: 2,048, or 4 times the count.")
    ] = None,
    max_batch_tokens: MaxBatchTokens = None,
    as_json: AsJson = False,
) -> None:
    """Select the pairs that a labeller should judge next, of a pool that nobody has judged."""
    from bayesrm_fast.model.exclusive import exclusively
    from bayesrm_fast.select.active import SelectionPlan
    from bayesrm_fast.select.active import select_pairs as selected_from
    from bayesrm_fast.text.files import iter_rows, write_rows
    from bayesrm_fast.text.records import iter_pools, pairs_within

    plan = SelectionPlan(count, cast("Strategy", strategy), seed, shortlist)
    check_output(output, input_file, model)
    sha256 = file_sha256(input_file)
    pool = sum(map(pairs_within, iter_pools(_with_free_columns(input_file), str(input_file))))
    plan.check_pool(pool)
    with one_writer(output, "run"):
        loaded = load_fitted(model, max_batch_tokens)
        records = iter_pools(iter_rows(input_file), str(input_file))
        with exclusively(loaded.model), progress_bar("selecting") as tell:
            selected = selected_from(loaded, loaded.passes(), loaded.fitted, records, pool, plan, tell)
        rows = _rows_of(selected, input_file)
        check_unchanged(input_file, sha256)
        write_rows(output, rows)
    told: dict[str, Any] = {"output": str(output), "pool": pool, "pairs": len(rows), "left_out": selected.left_out}
    if selected.sketch_error is not None:
        told["sketch_error"] = selected.sketch_error
    show_summary(told, as_json)


def _with_free_columns(path: Path) -> Iterator[dict[str, Any]]:
    from bayesrm_fast.text.files import iter_rows

    for number, row in enumerate(iter_rows(path), start=1):
        taken = [name for name in ADDED if name in row]
        if taken:
            raise InputError(f"{path}, row {number} has a column {taken[0]!r} already: rename it")
        yield row


def _rows_of(selected: "SelectedPairs", path: Path) -> list[dict[str, Any]]:
    """Input rows of the selected pairs, with what was found, in the order of choice."""
    from bayesrm_fast.text.files import iter_rows

    asked = {pair.row for pair in selected.pairs}
    given = {number: row for number, row in enumerate(iter_rows(path)) if number in asked}
    rows = []
    for rank, pair in enumerate(selected.pairs, start=1):
        row = given[pair.row]
        found = {"rank": rank, "information": pair.information, "probability": pair.probability, "std": pair.std}
        rows.append(row | found | ({"pair": [pair.first, pair.second]} if "responses" in row else {}))
    return rows
