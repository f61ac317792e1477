"""`bayesrm train`."""

from pathlib import Path
from typing import Annotated

import typer

from bayesrm_fast.atomic import check_folder, one_writer
from bayesrm_fast.cli.arguments import AsJson, MaxLength, Pairs
from bayesrm_fast.cli.terminal import progress_bar, quiet_transformers, show_summary


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
    from bayesrm_fast.text.files import read_rows
    from bayesrm_fast.text.records import preference_pairs

    check_folder(output)
    rows = preference_pairs(read_rows(pairs), str(pairs))
    from bayesrm_fast.train.adapter import TrainOptions, train_adapter

    quiet_transformers()
    options = TrainOptions(lora_rank, lora_alpha, target, epochs, learning_rate, batch_size, max_length, seed)
    with one_writer(output, "run"), progress_bar("training") as tell:
        log = train_adapter(base, rows, output, options, tell)
    last = log[-1] if log else {}
    show_summary(
        {"output": str(output), "pairs": len(rows), "loss": last.get("loss"), "accuracy": last.get("accuracy")}, as_json
    )
