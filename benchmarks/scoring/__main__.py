"""What rewards with uncertainty cost, beside the reward alone and beside the peers.

    python -m benchmarks.scoring                    # all parts, 80 minutes on two cores
    python -m benchmarks.scoring --part shapes      # one of the parts below
    python -m benchmarks.scoring --part gpu         # on a GPU: gpu_1b and gpu_8b
    python -m benchmarks.scoring --quick            # a minute; shows that everything runs

Formulations take turns in one process; memory is measured in a process for each. `benchmarks/peers.py` says what a peer
needs to run at all; `tests/peers.txt` installs them.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.data import RESULTS
from benchmarks.scoring.alpaca import alpaca_part, alpaca_virtual_part
from benchmarks.scoring.beside_peers import best_batches_part, report_memory, shapes_part
from benchmarks.scoring.fit import fit_part
from benchmarks.scoring.on_gpu import JOBS, SMALL, gpu_part
from benchmarks.scoring.posteriors import dtypes_part, one_row_part, relative_part, structures_part, virtual_part
from benchmarks.scoring.prompts import prompts_part
from benchmarks.scoring.rejected import compile_part, packing_part
from benchmarks.scoring.shared_backward import shared_backward_part
from benchmarks.scoring.start import start_part
from benchmarks.scoring.stream import memory_part

PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "shapes": shapes_part,
    "best_batches": best_batches_part,
    "structures": structures_part,
    "one_row": one_row_part,
    "dtypes": dtypes_part,
    "relative": relative_part,
    "virtual": virtual_part,
    "prompts": prompts_part,
    "shared_backward": shared_backward_part,
    "fit": fit_part,
    "memory": memory_part,
    "start": start_part,
    "packing": packing_part,
    "compile": compile_part,
    "alpaca": alpaca_part,
    "alpaca_virtual": alpaca_virtual_part,
}
GPU_PARTS = {name: lambda quick, job=job: gpu_part(SMALL if quick else job) for name, job in JOBS.items()}
OF_SEVERAL_JOBS = {"shapes", "best_batches", "structures", "one_row", "dtypes", "relative", "virtual", "prompts"} | {
    "shared_backward",
    "packing",
}


def print_part(name: str, part: dict[str, Any], console: Console) -> None:
    """Times as a table, everything else as it is."""
    for title, job in part.items() if name in OF_SEVERAL_JOBS else [(name, part)]:
        table = Table(
            "formulation", "seconds", "processor seconds", "rounds", "plain forwards", "peak MiB", title=title
        )
        for row, values in job.get("formulations", {}).items() if isinstance(job, dict) else ():
            peak = values.get("memory", {})
            table.add_row(
                row,
                f"{values['seconds']:.3g}" if "seconds" in values else "",
                f"{values['processor_seconds']:.3g}" if "processor_seconds" in values else "",
                str(values.get("rounds", "")),
                f"{values['plain_forwards']:.2f}" if "plain_forwards" in values else "",
                peak.get("failed") or (f"{peak['peak_bytes'] / 2**20:.0f}" if peak else ""),
            )
        console.print(table)
        console.print({key: value for key, value in job.items() if key != "formulations"})


def main(
    part: Annotated[str, typer.Option(help="all; gpu, its GPU parts; or one part.")] = "all",
    quick: Annotated[bool, typer.Option(help="Small shapes: shows that everything runs.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
    child_job: Annotated[str, typer.Option("--child", hidden=True)] = "",
) -> None:
    """Measure, print the tables and write the JSON file; a part that is measured again replaces itself there."""
    if child_job:
        report_memory(child_job)
        return
    console = Console(width=160)
    device = "cuda" if part == "gpu" or part in GPU_PARTS else "cpu"
    on = f"-{machine.gpu_in_file_names()}" if device == "cuda" else ""
    name = f"scoring{on}{'-quick' * quick}"
    path = output / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() and part not in ("all", "gpu") else {}
    results = {"command": "python -m benchmarks.scoring", "parts": before.get("parts", {})}
    whole: dict[str, Iterable[str]] = {"all": PARTS, "gpu": GPU_PARTS}
    for chosen in whole.get(part, [part]):
        found = (PARTS | GPU_PARTS)[chosen](quick)
        found["machine"] = machine.describe(device)
        print_part(chosen, {k: v for k, v in found.items() if k != "machine"}, console)
        results["parts"][chosen] = found
        path.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
