"""Arguments that commands share, and how their text is read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from bayesrm_fast.errors import InputError

if TYPE_CHECKING:
    import torch

    from bayesrm_fast.fit.options import Precision

Model = Annotated[Path, typer.Argument(help="Folder of an adapter, with its posterior where one is needed.")]
Pairs = Annotated[Path, typer.Argument(help="JSONL, JSONL.gz or Parquet with prompt, chosen, rejected.")]
Labelled = Annotated[
    Path,
    typer.Argument(help="JSONL, JSONL.gz or Parquet with prompt, chosen, rejected; or prompt, completions, labels."),
]
Output = Annotated[Path, typer.Argument(help="Results, as .jsonl, .jsonl.gz or .parquet.")]
Relative = Annotated[
    bool,
    typer.Option("--relative/--absolute", help="Difference to the prompt's other candidates, or reward."),
]
Resume = Annotated[bool, typer.Option(help="Continue a run that was killed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
Joined = Annotated[
    str | None, typer.Option("--joining", help="How a row is made: template, pair, blank line or concatenate.")
]
StepSeparator = Annotated[
    str | None, typer.Option(help="What stands after each step. Default: as trained, or a line break.")
]
AppendsEos = Annotated[bool | None, typer.Option("--append-eos/--no-eos", help="Whether rows end in the eos token.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens at which a row is cut.")]
MaxBatchTokens = Annotated[int | None, typer.Option(help="Tokens of a batch, padding included.")]


def number(option: str, text: str) -> float:
    """A number; raises InputError where it is none."""
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--{option} must be a number, not {text!r}") from error


def whole_number(option: str, text: str) -> int:
    """A whole number; raises InputError where it is none."""
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"--{option} must be a whole number, not {text!r}") from error


def precision(text: str) -> "Precision":
    """A prior precision or the name of a choice; raises InputError where it is neither."""
    from bayesrm_fast.fit.options import CHOICES

    return cast("Precision", text) if text in CHOICES else number("prior-precision", text)


def dtype(option: str, text: str) -> "torch.dtype":
    """float32, bfloat16 or int8; raises InputError where it is none of them."""
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
    if text not in dtypes:
        raise InputError(f"--{option} must be float32, bfloat16 or int8, not {text!r}")
    return dtypes[text]
