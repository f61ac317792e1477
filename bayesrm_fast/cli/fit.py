"""`bayesrm fit`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bayesrm_fast.atomic import check_folder, settle
from bayesrm_fast.cli.arguments import (
    AppendsEos,
    AsJson,
    Joined,
    Labelled,
    MaxBatchTokens,
    MaxLength,
    StepSeparator,
    dtype,
    number,
    precision,
    whole_number,
)
from bayesrm_fast.cli.models import load, posterior_summary
from bayesrm_fast.cli.terminal import progress_bar, show_summary
from bayesrm_fast.cli.torchrun import is_first, one_writer_of_all, process_group
from bayesrm_fast.errors import InputError


def fit(
    model: Annotated[Path, typer.Argument(help="Folder or hub name of an adapter, or of any model (--virtual-rank).")],
    pairs: Labelled,
    output: Annotated[
        Path | None, typer.Option(help="Folder for adapter and posterior. Default: the adapter's own.")
    ] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Rows are of prompt and responses, none of them preferred.")
    ] = False,
    virtual_rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of virtual adapters, for a model as it is.")
    ] = None,
    virtual_targets: Annotated[
        list[str] | None, typer.Option(help="Layers that get one, by their names; may be repeated. Default: auto.")
    ] = None,
    structure: Annotated[str, typer.Option(help="ggn, kfac or ekfac.")] = "ggn",
    rank: Annotated[
        str, typer.Option(help="Eigenvectors kept (kfac, ekfac: of each large side), a number or full.")
    ] = "default",
    second_pass: Annotated[bool, typer.Option(help="For ggn: sharpen the eigenvectors by a second pass.")] = False,
    basis_dtype: Annotated[str | None, typer.Option(help="For ggn: float32, bfloat16 or int8.")] = None,
    prior_precision: Annotated[
        str | None,
        typer.Option(
            help="A number, evidence (default for LoRA), margins (default with virtual adapters), validation."
        ),
    ] = None,
    include_head: Annotated[bool, typer.Option(help="Put the score head into the posterior.")] = False,
    output_weights: Annotated[str | None, typer.Option(help="Weight of each output, separated by commas.")] = None,
    joining: Joined = None,
    append_eos: AppendsEos = None,
    step_separator: StepSeparator = None,
    max_length: MaxLength = None,
    max_batch_tokens: MaxBatchTokens = None,
    as_json: AsJson = False,
) -> None:
    """Fit the posterior of an adapter, or of a model's virtual adapters, on preference pairs or steps, and save it.

    Under torchrun (torchrun --nproc-per-node 8 -m bayesrm_fast.cli fit …) the processes share the pairs.
    """
    from bayesrm_fast.fit.options import FitOptions
    from bayesrm_fast.saved.folders import check_target, is_saved_adapter
    from bayesrm_fast.text.files import read_rows
    from bayesrm_fast.text.records import candidate_sets
    from bayesrm_fast.text.steps import is_stepwise, labelled_records

    folder = output or model
    settle(model)
    if output is None and not is_saved_adapter(model):
        raise InputError("--output is needed: posterior and virtual adapters go into a folder of their own")
    virtual: dict[str, Any] = {}
    if virtual_rank is not None:
        targets = "auto" if virtual_targets in (None, ["auto"]) else virtual_targets
        virtual = {"virtual_rank": virtual_rank, "virtual_targets": targets}
    elif virtual_targets:
        raise InputError("--virtual-targets goes with --virtual-rank")
    options = FitOptions(
        structure,
        "default" if rank == "default" else None if rank == "full" else whole_number("rank", rank),
        None if prior_precision is None else precision(prior_precision),
        include_head,
        second_pass,
        None if basis_dtype is None else dtype("basis-dtype", basis_dtype),
    )
    weights = None if output_weights is None else [number("output-weights", w) for w in output_weights.split(",")]
    check_folder(folder)
    rows = read_rows(pairs)
    in_steps = is_stepwise(rows[0])
    if in_steps and unlabelled:
        raise InputError(f"{pairs} has responses in steps, which need labels: leave out --unlabelled")
    sets = candidate_sets(rows, str(pairs)) if unlabelled else []
    if any(one.tools for one in sets):
        raise InputError(f"{pairs} has tools, which go with labelled pairs: leave out --unlabelled")
    labelled = [] if unlabelled else labelled_records(rows, str(pairs))

    with process_group() as group, one_writer_of_all(folder):
        loaded = load(
            model,
            output_weights=weights,
            joining=joining,
            appends_eos=append_eos,
            step_separator=step_separator,
            max_length=max_length,
            max_batch_tokens=max_batch_tokens,
            **virtual,
        )
        if in_steps:
            loaded.segment_encoder  # noqa: B018  (raises for a model that scores whole responses)
        check_target(folder, None if loaded.adapter is None else loaded.base_model)
        with progress_bar("fitting") as tell:
            together: dict[str, Any] = {"group": group, "progress": tell if is_first() else None}
            if unlabelled:
                prompts = [one.prompt for one in sets for _ in one.responses]
                responses = [response for one in sets for response in one.responses]
                loaded.fit_unlabelled(prompts, responses, options, **together)
            else:
                loaded.fit(labelled, options, **together)
        if is_first():
            loaded.save_pretrained(folder)
    if is_first():
        show_summary({"output": str(folder), **posterior_summary(folder)}, as_json)
