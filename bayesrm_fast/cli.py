"""The command `bayesrm`."""

import hashlib
import itertools
import json
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from bayesrm_fast.__main__ import describe_backends, describe_machine
from bayesrm_fast.checkpoints import check_writable, is_saved_adapter
from bayesrm_fast.errors import InputError
from bayesrm_fast.files import ResumableOutput, check_output, iter_rows, read_rows
from bayesrm_fast.fitting import CHOICES, FitOptions, Precision
from bayesrm_fast.passes import Segment
from bayesrm_fast.posterior_files import read_record, save_posterior
from bayesrm_fast.progress import progress_bar, quiet_transformers
from bayesrm_fast.reward_model import BayesianRewardModel
from bayesrm_fast.selection import BestOfN, first_best, penalty_of
from bayesrm_fast.streaming import prefetched
from bayesrm_fast.text import (
    Candidates,
    PreferencePair,
    candidate_sets,
    iter_candidate_sets,
    iter_preference_pairs,
    preference_pairs,
)
from bayesrm_fast.training import TrainOptions, train_adapter
from bayesrm_fast.virtual import VirtualOptions
from bayesrm_fast.virtual_files import read_virtual_record

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Reward models with uncertainty."
)
stdout = Console()
stderr = Console(stderr=True)

CHUNK = 64
"""Rows of an input file that are scored together; a resumed run continues at a multiple of it."""

T = TypeVar("T")

Model = Annotated[Path, typer.Argument(help="Folder of an adapter, with its posterior where one is needed.")]
Pairs = Annotated[Path, typer.Argument(help="JSONL, JSONL.gz or Parquet with prompt, chosen, rejected.")]
Output = Annotated[Path, typer.Argument(help="Results, as .jsonl, .jsonl.gz or .parquet.")]
Resume = Annotated[bool, typer.Option(help="Continue a run that was killed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens at which a row is cut.")]
MaxBatchTokens = Annotated[int | None, typer.Option(help="Tokens of a batch, padding included.")]


def main() -> None:
    """Run the command line; bad input ends with one line and exit code 2."""
    warnings.showwarning = _show_warning
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("bayesrm_fast").setLevel(logging.INFO)
    try:
        app()
    except InputError as error:
        stderr.print(f"bayesrm: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning) and not issubclass(category, FutureWarning):
        stderr.print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)


def _load(model: Path, **options: Any) -> BayesianRewardModel:
    quiet_transformers()
    return BayesianRewardModel.from_pretrained(model, **options)


def _load_fitted(model: Path, max_batch_tokens: int | None) -> BayesianRewardModel:
    loaded = _load(model, max_batch_tokens=max_batch_tokens)
    loaded.fitted  # noqa: B018  (raises where there is none, before anything is written)
    return loaded


@app.command()
def train(
    pairs: Pairs,
    output: Annotated[Path, typer.Argument(help="Folder for the adapter.")],
    base: Annotated[str, typer.Option(help="Name or folder of the model to adapt.")],
    lora_rank: Annotated[int, typer.Option(min=1, help="r of every adapted layer.")] = 8,
    lora_alpha: Annotated[int, typer.Option(help="The adapter's scaling is alpha / r.")] = 16,
    target: Annotated[list[str] | None, typer.Option(help="Name of the layers to adapt; may be repeated.")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the pairs.")] = 1.0,
    learning_rate: Annotated[float, typer.Option(help="Peak of the linear schedule.")] = 1e-4,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs of a step.")] = 8,
    max_length: MaxLength = None,
    seed: Annotated[int, typer.Option(help="Of initialisation and order.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a LoRA reward model with trl and save a normal peft adapter."""
    check_writable(output)
    rows = preference_pairs(read_rows(pairs), str(pairs))
    quiet_transformers()
    options = TrainOptions(lora_rank, lora_alpha, target, epochs, learning_rate, batch_size, max_length, seed)
    with progress_bar("training", stderr) as tell:
        log = train_adapter(base, rows, output, options, tell)
    last = log[-1] if log else {}
    _summary(
        {"output": str(output), "pairs": len(rows), "loss": last.get("loss"), "accuracy": last.get("accuracy")}, as_json
    )


@app.command()
def fit(
    model: Annotated[Path, typer.Argument(help="Folder or hub name of an adapter, or of any model (--virtual-rank).")],
    pairs: Pairs,
    output: Annotated[
        Path | None, typer.Option(help="Folder for adapter and posterior. Default: the adapter's own.")
    ] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Rows are of prompt and responses, none of them preferred.")
    ] = False,
    virtual_rank: Annotated[int | None, typer.Option(help="Rank of virtual adapters, for a model as it is.")] = None,
    virtual_targets: Annotated[
        list[str] | None, typer.Option(help="Layers that get one, by their names; may be repeated. Default: auto.")
    ] = None,
    structure: Annotated[str, typer.Option(help="ggn, kfac or ekfac.")] = "ggn",
    rank: Annotated[
        str, typer.Option(help="Eigenvectors kept (kfac, ekfac: of each large side), a number or full.")
    ] = "default",
    second_pass: Annotated[bool, typer.Option(help="For ggn: sharpen the eigenvectors by a second pass.")] = False,
    basis_dtype: Annotated[str | None, typer.Option(help="For ggn: float32 or bfloat16.")] = None,
    prior_precision: Annotated[
        str | None,
        typer.Option(
            help="A number, evidence (default for LoRA), margins (default with virtual adapters), validation."
        ),
    ] = None,
    include_head: Annotated[bool, typer.Option(help="Put the score head into the posterior.")] = False,
    output_weights: Annotated[str | None, typer.Option(help="Weight of each output, separated by commas.")] = None,
    max_length: MaxLength = None,
    max_batch_tokens: MaxBatchTokens = None,
    as_json: AsJson = False,
) -> None:
    """Fit the posterior of an adapter, or of a model's virtual adapters, on preference pairs and save it."""
    folder = output or model
    if output is None and not is_saved_adapter(model):
        raise InputError("--output is needed: posterior and virtual adapters go into a folder of their own")
    virtual: dict[str, Any] = {}
    if virtual_rank is not None:
        virtual = {
            "virtual_rank": virtual_rank,
            "virtual_targets": "auto" if virtual_targets in (None, ["auto"]) else virtual_targets,
        }
        VirtualOptions(*virtual.values())
    elif virtual_targets:
        raise InputError("--virtual-targets goes with --virtual-rank")
    options = FitOptions(
        structure,
        "default" if rank == "default" else None if rank == "full" else _whole_number("rank", rank),
        "margins" if prior_precision is None else _precision(prior_precision),
        second_pass,
        None if basis_dtype is None else _dtype("basis-dtype", basis_dtype),
    )
    weights = None if output_weights is None else [_number("output-weights", w) for w in output_weights.split(",")]
    check_writable(folder)
    read = candidate_sets if unlabelled else preference_pairs
    rows: list[Any] = read(read_rows(pairs), str(pairs))

    loaded = _load(model, output_weights=weights, max_length=max_length, max_batch_tokens=max_batch_tokens, **virtual)
    given: dict[str, Any] = {} if prior_precision is None else {"prior_precision": options.prior_precision}
    given |= {"structure": options.structure, "rank": options.rank, "include_head": include_head}
    given |= {"second_pass": options.second_pass, "basis_dtype": options.basis_dtype}
    with progress_bar("fitting", stderr) as tell:
        if unlabelled:
            prompts = [row.prompt for row in rows for _ in row.responses]
            loaded.fit_unlabelled(prompts, [text for row in rows for text in row.responses], **given, progress=tell)
        else:
            loaded.fit(rows, **given, progress=tell)
    loaded.save_pretrained(folder)
    _summary({"output": str(folder), **_posterior_summary(folder)}, as_json)


@app.command("calibrate")
def calibrate_command(
    model: Model,
    pairs: Pairs,
    prior_precision: Annotated[str, typer.Option(help="validation, evidence, margins or a number.")] = "validation",
    plot: Annotated[Path | None, typer.Option(help="Draw a reliability diagram into this file.")] = None,
    max_batch_tokens: MaxBatchTokens = None,
    as_json: AsJson = False,
) -> None:
    """Choose prior precision and temperature by held-out pairs, and save them with the posterior."""
    rows = preference_pairs(read_rows(pairs), str(pairs))
    loaded = _load_fitted(model, max_batch_tokens)
    with progress_bar("calibrating", stderr) as tell:
        found = loaded.calibrate(rows, _precision(prior_precision), progress=tell)
    save_posterior(loaded.fitted, model)
    if plot is not None:
        found.plot(plot)
    shown: dict[str, Any] = {
        "pairs": found.pairs,
        "prior_precision": found.prior_precision,
        "temperature": found.temperature,
    }
    for when, one in (("before", found.before), ("after", found.after)):
        shown |= {f"{name}_{when}": getattr(one, name) for name in ("accuracy", "nll", "brier", "ece")}
    _summary(shown, as_json)


@app.command()
def score(
    model: Model,
    input_file: Annotated[Path, typer.Argument(metavar="INPUT", help="Rows of prompt, responses or of pairs.")],
    output: Output,
    resume: Resume = False,
    max_batch_tokens: MaxBatchTokens = None,
    as_json: AsJson = False,
) -> None:
    """Reward, variance and std of every response, or of the difference of every pair."""
    check_output(output)
    first = next(iter_rows(input_file))
    paired = "responses" not in first and "chosen" in first
    iter_records: Any = iter_preference_pairs if paired else iter_candidate_sets
    total = sum(1 for _ in iter_records(iter_rows(input_file), str(input_file)))
    loaded = _load_fitted(model, max_batch_tokens)
    results = ResumableOutput(output, _job(loaded, input_file, {"max_batch_tokens": max_batch_tokens}), CHUNK, resume)

    def tokenized() -> Iterator[tuple[list[Any], list[Segment]]]:
        for chunk in _chunks(iter_records(iter_rows(input_file), str(input_file)), results.count):
            if paired:
                yield chunk, loaded.tokenize_pairs(chunk)
            else:
                prompts = [record.prompt for record in chunk for _ in record.responses]
                yield chunk, loaded.tokenize(prompts, [text for record in chunk for text in record.responses])

    with progress_bar("scoring", stderr) as tell:
        for chunk, segments in prefetched(tokenized()):
            columns = {name: v.tolist() for name, v in loaded.score_tokenized(segments).columns().items()}
            results.add(_pair_rows(chunk, columns) if paired else _candidate_rows(chunk, columns))
            tell(results.count, total)
    cut = sum(np.any(row["truncated"]) for row in results.rows())
    results.finish()
    _summary({"output": str(output), "rows": results.count, "rows_with_cut_text": int(cut)}, as_json)


@app.command("best-of-n")
def best_of_n(
    model: Model,
    input_file: Annotated[Path, typer.Argument(metavar="INPUT", help="Rows of prompt, responses.")],
    output: Output,
    penalty: Annotated[str, typer.Option(help="none, std or variance.")] = "std",
    k: Annotated[float, typer.Option("--k", help="Weight of the penalty.")] = 1.0,
    resume: Resume = False,
    max_batch_tokens: MaxBatchTokens = None,
    as_json: AsJson = False,
) -> None:
    """Pick the best response of every prompt by its penalised reward."""
    penalty_of(penalty, k)
    check_output(output)
    total = sum(1 for _ in iter_candidate_sets(iter_rows(input_file), str(input_file)))
    loaded = _load_fitted(model, max_batch_tokens)
    job = _job(loaded, input_file, {"max_batch_tokens": max_batch_tokens, "penalty": penalty, "k": k})
    results = ResumableOutput(output, job, CHUNK, resume)
    with progress_bar("choosing", stderr) as tell:
        sets = iter_candidate_sets(iter_rows(input_file), str(input_file))
        for chunk in prefetched(_chunks(sets, results.count)):
            best = loaded.best_of_each(chunk, penalty, k)
            results.add(_chosen_row(record, one) for record, one in zip(chunk, best, strict=True))
            tell(results.count, total)
    tally = dict.fromkeys(("candidates", "variances", "choices_changed_by_the_penalty"), 0)
    for row in results.rows():
        tally["candidates"] += row["candidates"]
        tally["variances"] += row["variances"]
        tally["choices_changed_by_the_penalty"] += row["index"] != row["index_by_mean"]
    results.finish()
    _summary({"output": str(output), "prompts": results.count, **tally}, as_json)


@app.command()
def info(
    model: Annotated[
        Path | None, typer.Argument(help="Folder with a posterior; none tells about this machine.")
    ] = None,
    backends: Annotated[bool, typer.Option("--backends", help="What serves each operation here, and why.")] = False,
    shortcuts: Annotated[bool, typer.Option("--shortcuts", help="Load the model and try what is exact on it.")] = False,
    as_json: AsJson = False,
) -> None:
    """What a saved posterior is, or what this machine can do."""
    if backends:
        told = describe_backends()
        _summary({f"{op}, {name}": says for op, all_say in told.items() for name, says in all_say.items()}, as_json)
        return
    if model is None:
        _summary(describe_machine(), as_json)
        return

    if shortcuts:
        _summary(_load(model).shortcuts.told(), as_json)
        return
    record = read_record(model)
    if as_json:
        stdout.print_json(json.dumps(record))
        return
    shown = _posterior_summary(model)
    shown |= {name: record[name] for name in ("base_model", "include_head", "max_length", "adapter_sha256")}
    shown |= {"versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items())}
    shown |= {"sites": f"{len(record['sites'])}, of {record['parameters']} weights"}
    _summary(shown, False)


def _posterior_summary(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    names = ("structure", "rank", "pairs", "prior_precision", "temperature", "log_evidence", "effective_parameters")
    shown = {name: record[name] for name in names if record[name] is not None or name == "rank"}
    shown |= {"prior_chosen_by": record["prior"]["method"]}
    virtual = read_virtual_record(folder)
    if virtual is not None:
        shown |= {"virtual_rank": virtual["virtual_rank"], "virtual_layers": len(virtual["layers"])}
    return shown


def _job(loaded: BayesianRewardModel, input_file: Path, options: dict[str, Any]) -> dict[str, Any]:
    record = loaded.fitted.record
    with input_file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "input_sha256": digest,
        "adapter_sha256": record.adapter_sha256,
        "structure": record.structure,
        "rank": record.rank,
        "prior_precision": loaded.fitted.prior_precision,
        "temperature": record.temperature,
        "max_length": loaded.encoder.max_length,
        **options,
    }


def _chunks(records: Iterable[T], done: int) -> Iterator[list[T]]:
    """The records after those that are done, in chunks."""
    left = itertools.islice(records, done, None)
    while chunk := list(itertools.islice(left, CHUNK)):
        yield chunk


def _candidate_rows(records: Sequence[Candidates], columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    start = 0
    for record in records:
        stop = start + len(record.responses)
        yield {"prompt": record.prompt, **{name: values[start:stop] for name, values in columns.items()}}
        start = stop


def _pair_rows(records: Sequence[PreferencePair], columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for i, record in enumerate(records):
        yield {"prompt": record.prompt, **{name: values[i] for name, values in columns.items()}}


def _chosen_row(record: Candidates, best: BestOfN) -> dict[str, Any]:
    i = best.index
    return {
        "prompt": record.prompt,
        "index": i,
        "response": best.response,
        "score": best.scores[i].item(),
        "mean": best.mean[i].item(),
        "std": best.variance[i].sqrt().item(),
        "index_by_mean": first_best(best.mean),
        "candidates": len(record.responses),
        "variances": best.variances,
    }


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--{option} must be a number, not {text!r}") from error


def _precision(text: str) -> Precision:
    return cast(Precision, text) if text in CHOICES else _number("prior-precision", text)


def _dtype(option: str, text: str) -> torch.dtype:
    if text not in ("float32", "bfloat16"):
        raise InputError(f"--{option} must be float32 or bfloat16, not {text!r}")
    return cast(torch.dtype, getattr(torch, text))


def _whole_number(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"--{option} must be a whole number, not {text!r}") from error


def _summary(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        stdout.print_json(json.dumps(values))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in values.items():
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), shown)
    stdout.print(table)
