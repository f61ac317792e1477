"""`bayesrm train`."""

from pathlib import Path
from typing import Annotated

import typer

from bayesrm_fast.atomic import check_folder, one_writer
from bayesrm_fast.cli.arguments import AsJson, Labelled, MaxLength, StepSeparator
from bayesrm_fast.cli.terminal import progress_bar, quiet_transformers, show_summary
from bayesrm_fast.errors import InputError


def train(
    pairs: Labelled,
    output: Annotated[Path, typer.Argument(help="Folder for the adapter.")],
    base: Annotated[str, typer.Option(help="Name or folder of the model to adapt.")],
    lora_rank: Annotated[int, typer.Option(min=1, help="r of every adapted layer.")] = 8,
    lora_alpha: Annotated[int, typer.Option(help="The adapter's scaling is alpha / r.")] = 16,
    target: Annotated[list[str] | None, typer.Option(help="Name of the layers to adapt; may be repeated.")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the rows.")] = 1.0,
    learning_rate: Annotated[float, typer.Option(help="Peak of the linear schedule.")] = 1e-4,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of an update.")] = 8,
    step_separator: StepSeparator = None,
    max_length: MaxLength = None,
    seed: Annotated[int, typer.Option(help="Of initialisation and order.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a LoRA reward model with trl on preference pairs, or a token classifier on steps; save a peft adapter."""
    from bayesrm_fast.text.files import read_rows
    from bayesrm_fast.text.steps import is_stepwise, labelled_records

    check_folder(output)
    rows = read_rows(pairs)
    in_steps = is_stepwise(rows[0])
    if step_separator is not None and not in_steps:
        raise InputError(f"--step-separator goes with responses in steps, and {pairs} has pairs")
    labelled = labelled_records(rows, str(pairs))
    from bayesrm_fast.train.adapter import TrainOptions, train_adapter
    from bayesrm_fast.train.steps import train_step_adapter

    quiet_transformers()
    options = TrainOptions(lora_rank, lora_alpha, target, epochs, learning_rate, batch_size, max_length, seed)
    with one_writer(output, "run"), progress_bar("training") as tell:
        if in_steps:
            log = train_step_adapter(base, labelled, output, options, tell, step_separator=step_separator)
        else:
            log = train_adapter(base, labelled, output, options, tell)
    what, figures = ("responses", ("loss",)) if in_steps else ("pairs", ("loss", "accuracy"))
    last = log[-1] if log else {}
    show_summary({"output": str(output), what: len(labelled)} | {name: last.get(name) for name in figures}, as_json)
