"""`bayesrm rewardbench`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayesrm_fast.cli.arguments import AsJson, MaxBatchTokens, Model, Resume
from bayesrm_fast.cli.jobs import check_unchanged, file_sha256, job_of
from bayesrm_fast.cli.models import load_fitted
from bayesrm_fast.cli.places import check_apart, check_outside, check_writable, files_in
from bayesrm_fast.cli.resumable import ResumableOutput
from bayesrm_fast.cli.terminal import progress_bar, show_summary, show_table
from bayesrm_fast.errors import InputError

if TYPE_CHECKING:
    from bayesrm_fast.evaluate.report import Figures, Report

ROWS, SCORES, ACCURACIES, UNCERTAINTY = "eval-set-rows", "eval-set-scores", "eval-set", "eval-set-uncertainty"
"""Folders of the output; the middle two are RewardBench's own."""


def rewardbench(
    model: Model,
    data: Annotated[Path, typer.Argument(help="Rows of RewardBench 1 or 2, as .jsonl, .jsonl.gz, .json or .parquet.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results"),
    name: Annotated[str | None, typer.Option(help="Of the model in the results. Default: its folder's.")] = None,
    in_domain: Annotated[
        list[str] | None, typer.Option(help="A subset that is like the training data; may be given several times.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the results into this file.")] = None,
    resume: Resume = False,
    max_batch_tokens: MaxBatchTokens = None,
    as_json: AsJson = False,
) -> None:
    """Scores on RewardBench as published, and what the uncertainty is worth there."""
    from bayesrm_fast.atomic import check_folder
    from bayesrm_fast.evaluate.accuracy import ScoredRow
    from bayesrm_fast.evaluate.report import check_in_domain, layouts, report, write_layout
    from bayesrm_fast.evaluate.rows import benchmark_rows
    from bayesrm_fast.evaluate.scoring import scored_chunks
    from bayesrm_fast.plots import check_plot
    from bayesrm_fast.text.files import iter_rows

    sha256 = file_sha256(data)
    found = benchmark_rows(iter_rows(data), str(data))
    chosen = list(in_domain or ())
    check_in_domain(chosen, sorted({row.subset for row in found.rows}))
    known_as = _checked_name(name or model.resolve().name)
    files = _files(output, known_as)
    check_folder(output)
    check_outside(files[ROWS], model)
    if figure is not None:
        check_plot(figure)
        check_apart(figure, [data], "the input")
        check_apart(figure, files_in(model), "a file of the model")
    loaded = load_fitted(model, max_batch_tokens)
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path, data, model)
    job = job_of(loaded, sha256, {"command": "rewardbench", "max_batch_tokens": max_batch_tokens})
    with ResumableOutput(files[ROWS], job, found.rows, resume) as results, progress_bar("scoring") as tell:
        for chunk, rows in scored_chunks(loaded, results.chunks()):
            results.add(chunk, map(dataclasses.asdict, rows))
            tell(results.count, len(found.rows))
        check_unchanged(data, sha256)
        scored = [ScoredRow(**row) for row in results]
        results.finish(len(found.rows))
    told = report(found.version, scored, loaded.fitted.temperature, chosen)
    template = "tokenizer" if loaded.tokenizer.chat_template else None
    for folder, content in layouts(told, found.rows, scored, known_as, template).items():
        write_layout(files[folder], content)
    if figure is not None:
        from bayesrm_fast.evaluate.figure import draw

        draw(told, figure)
    if not as_json:
        _show_tables(told)
    show_summary(_summary(told, files), as_json)


def _checked_name(name: str) -> str:
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise InputError(f"--name must be a name, or an organisation and a name with a slash between, not {name!r}")
    return name


def _files(output: Path, name: str) -> dict[str, Path]:
    places = {folder: output / folder / f"{name}.json" for folder in (ACCURACIES, SCORES, UNCERTAINTY)}
    return {**places, ROWS: output / ROWS / f"{name}.jsonl"}


def _show_tables(told: "Report") -> None:
    from bayesrm_fast.evaluate.accuracy import section_of

    columns = ("section", "subset", "rows", "score", "NLL", "NLL, reward alone", "mean std")
    lines: list[tuple[str, ...]] = []
    for section in [*told.sections, None]:
        own = [subset for subset in told.subsets if section_of(told.version, subset) == section]
        if section is not None:
            lines.append((section, "", "", _number(told.sections[section]), "", "", ""))
        elif own:
            lines.append(("outside of sections", "", "", "", "", "", ""))
        lines += [("", subset, str(told.rows_of_subsets[subset]), *_of_subset(told, subset)) for subset in own]
    show_table(columns, lines, texts=2)
    groups = {"all rows": told.figures}
    if told.domains is not None:
        groups |= {"in domain": told.domains.in_domain, "out of domain": told.domains.out_of_domain}
    scores = ("", "accuracy", "NLL", "Brier", "ECE", "of the reward alone: NLL", "Brier", "ECE", "mean std")
    show_table(scores, [(name, *_of_group(one)) for name, one in groups.items() if one is not None])
    if told.figures is None:
        return
    coverages = list(told.figures.accuracy_at_coverage["posterior"])
    lines = [
        ("by P(chosen ≻ rejected)", *_by_order(told.figures, "posterior", "probability")),
        ("by |Δ| alone", *_by_order(told.figures, "margin", "margin")),
        ("by std alone", *("" for _ in coverages), _number(told.figures.auroc_for_wrong["std"])),
    ]
    show_table(("accuracy where answered, of", *coverages, "AUROC for wrong answers"), lines)


def _of_subset(told: "Report", subset: str) -> tuple[str, ...]:
    one = told.by_subset.get(subset)
    if one is None:
        return (_number(told.subsets[subset]), "", "", "")
    nll = [one.probabilities[name]["nll"] for name in ("posterior", "reward")]
    return tuple(_number(value) for value in (told.subsets[subset], *nll, one.mean_std))


def _of_group(one: "Figures") -> tuple[str, ...]:
    values = [one.probabilities[name][score] for name in ("posterior", "reward") for score in ("nll", "brier", "ece")]
    return tuple(_number(value) for value in (one.accuracy, *values, one.mean_std))


def _by_order(one: "Figures", order: str, doubt: str) -> tuple[str, ...]:
    return (*map(_number, one.accuracy_at_coverage[order].values()), _number(one.auroc_for_wrong[doubt]))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _summary(told: "Report", files: Mapping[str, Path]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "version": told.version,
        "rows": sum(told.rows_of_subsets.values()),
        "rows_with_cut_text": told.truncated,
        "overall": told.overall,
        **told.sections,
    }
    for name, some in (
        ("sections_without_rows", told.absent_sections),
        ("outside_of_sections", told.outside_of_sections),
    ):
        shown |= {name: ", ".join(some)} if some else {}
    if told.domains is not None:
        shown |= {"auroc_of_std_for_out_of_domain": told.domains.auroc_of_std}
        shown |= {"auroc_of_margin_for_out_of_domain": told.domains.auroc_of_margin}
    return shown | {"uncertainty": str(files[UNCERTAINTY])}
