"""`bayesrm info`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bayesrm_fast.atomic import settle
from bayesrm_fast.cli.arguments import AsJson
from bayesrm_fast.cli.imports import without_collections
from bayesrm_fast.cli.models import load, posterior_summary
from bayesrm_fast.cli.terminal import show_summary, stdout


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
        with without_collections():
            from bayesrm_fast.ops.backends import describe_backends

        told = describe_backends()
        shown = {f"{op}, {name}": says for op, all_say in told.items() for name, says in all_say.items()}
        show_summary(shown, as_json)
        return
    if model is None:
        with without_collections():
            from bayesrm_fast.ops.machine import describe_machine

        show_summary(describe_machine(), as_json)
        return
    if shortcuts:
        show_summary(load(model).shortcuts.told(), as_json)
        return
    with without_collections():
        from bayesrm_fast.posterior.files import FILES

    settle(model)
    record = FILES.read_record(model)
    if as_json:
        stdout.print_json(json.dumps(asdict(record)))
        return
    summary = posterior_summary(model)
    summary |= {name: getattr(record, name) for name in ("base_model", "include_head", "max_length")}
    if record.joining is not None:
        summary |= {"joining": record.joining}
    summary |= {"versions": ", ".join(f"{name} {version}" for name, version in record.versions.items())}
    summary |= {"sites": f"{len(record.sites)}, of {record.parameters} weights"}
    show_summary(summary, False)
