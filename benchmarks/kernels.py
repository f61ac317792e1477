"""What the operations cost: every backend against the best plain-torch formulation, and their share of scoring.

python -m benchmarks.kernels                  # six minutes on two cores
python -m benchmarks.kernels --device cuda    # on a GPU: fractions of the bandwidth that a copy reaches there
python -m benchmarks.kernels --quick          # seconds; shows that everything runs
"""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bayesrm_fast.ops import kron_variance
from bayesrm_fast.ops.backends import BACKENDS, PREFERENCE, refusal, use_backend
from bayesrm_fast.ops.cpu import instruction_set
from bayesrm_fast.sites import Consumer
from benchmarks import machine
from benchmarks.data import RESULTS
from benchmarks.formulations import LOSES_DIGITS, PLAIN_TORCH, batched_norms, inputs, rectangles
from benchmarks.streaming import streaming_rows
from benchmarks.timing import ceilings, medians

LENGTHS = {
    "cpu": {
        "64 × 128": [128] * 64,
        "16 × 512": [512] * 16,
        "16 to 512": [16, 512, 48, 300, 128, 77, 401, 211, 33, 509, 150, 64, 97, 256, 19, 490] * 2 + [1000, 570],
    },
    "cuda": {
        "64 × 64": [64] * 64,
        "64 × 128": [128] * 64,
        "64 × 512": [512] * 64,
        "16 to 2048": [16 + 2032 * (37 * n % 64) // 63 for n in range(64)],
    },
}
FLOAT, HALF = torch.float32, torch.bfloat16
SHAPES = {  # dtypes of p and q, then d, r, k; a bfloat16 model's layers hand over p in float32
    "cpu": (((FLOAT, FLOAT), (HALF, HALF)), (384, 768, 4096), (4, 8, 16, 64), (16, 64)),
    "cuda": (((HALF, HALF), (FLOAT, HALF)), (4096, 14_336), (8, 16, 64), (16, 64)),
}
QUICK = {"cpu": (384, 8, 16), "cuda": (4096, 16, 64)}
ROUNDS = 9
RANK = 64

MEASURES = {"ratio_to_best_torch": "ratio", "gflops": "GFLOP/s", "q_gb_per_s": "q GB/s", "of_copy": "of copy"}

COMPILED_ROWS = (16,)
"""Of the gradient: compiling takes its time, and more rows would say the same."""

compiled_norms = torch.compile(batched_norms, dynamic=True)


def compiler_serves(*arguments: Tensor) -> str:
    """That `torch.compile` takes the cheapest formulation, or what it says instead: that is a result too."""
    try:
        compiled_norms(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    return "serves"


def kernel_row(
    lengths: str,
    r: int,
    d: int,
    k: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    rounds: int,
    device: str,
    copy_bytes_per_s: float | None,
) -> dict[str, Any]:
    """One shape: seconds of every formulation, and of every backend's the rates and the ratio to the best in torch."""
    segments = LENGTHS[device][lengths]
    arguments = p, q, _, *constants = inputs(segments, r, d, k, *dtypes, device)
    backends = [name for name in PREFERENCE[device] if refusal(name, "kron_variance", arguments) is None]

    def by(backend: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with use_backend(backend):
                return kron_variance(*arguments)

        return run

    formulations = {name: by(name) for name in backends}
    plain = dict(PLAIN_TORCH)
    compiler = "not asked"
    if device == "cuda" and r in COMPILED_ROWS:
        compiler = compiler_serves(*rectangles(p, q, segments), *constants)
        plain |= {"compiled_norms": compiled_norms} if compiler == "serves" else {}
    formulations |= {
        name: lambda formula=formula: formula(*rectangles(p, q, segments), *constants)
        for name, formula in plain.items()
    }
    seconds = medians(formulations, rounds, device)
    ours = [name for name in backends if name != "reference"]
    best = min(time for name, time in seconds.items() if name not in ours and name not in LOSES_DIGITS[q.dtype])
    flops = 2 * p.shape[0] * r * (d + r) + 4 * len(segments) * r * d * k
    done = {"ratio_to_best_torch": best, "gflops": flops / 1e9, "q_gb_per_s": q.nbytes / 1e9}
    if copy_bytes_per_s is not None:
        done["of_copy"] = q.nbytes / copy_bytes_per_s
    return {
        "segments": lengths,
        "r": r,
        "d": d,
        "k": k,
        "dtypes": [str(dtype).removeprefix("torch.") for dtype in dtypes],
        "seconds": seconds,
        "torch_compile": compiler,
        **{measure: {name: amount / seconds[name] for name in ours} for measure, amount in done.items()},
    }


def scoring_share(rounds: int, layers: int = 4) -> dict[str, Any]:
    """What the variance adds to scoring: time over the same forward and backward pass whose consumer does nothing."""
    from bayesrm_fast.model.passes import unit_cotangent
    from benchmarks.baselines import Nothing
    from benchmarks.shapes import LlamaShape, fitted, passes_of, random_pairs, random_rows

    shape = LlamaShape(512, layers, intermediate=1376)
    passes = passes_of(shape.model(), 4096)
    posterior = fitted(passes, random_pairs(4, 128), RANK)
    rows = random_rows([128] * 16)

    def score(make_consumer: Callable[[], Consumer], backend: str) -> Callable[[], None]:
        def run() -> None:
            with use_backend(backend):
                for _ in passes.over(rows, unit_cotangent, make_consumer):
                    pass

        return run

    variances = {backend: score(posterior.variance_consumer, backend) for backend in PREFERENCE["cpu"]}
    seconds = medians({"nothing": score(Nothing, "auto"), **variances}, rounds)
    return {
        "hidden": shape.hidden,
        "layers": layers,
        "r": shape.r,
        "k": RANK,
        "rows": "16 × 128",
        "seconds": seconds,
        "share": {backend: seconds[backend] / seconds["nothing"] - 1 for backend in variances},
    }


def print_rows(rows: list[dict[str, Any]], console: Console) -> None:
    """A line a shape: milliseconds of all, then each backend's ratio to the best in torch and its rate of reading q."""
    names = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    ours = list(dict.fromkeys(name for row in rows for name in row["gflops"]))
    measures = {key: title for key, title in MEASURES.items() if key in rows[0]}
    table = Table("p and q", "d", "r", "k", "segments", *(f"{name} ms" for name in names))
    for name in ours:
        for title in measures.values():
            table.add_column(f"{name} {title}")
    for row in rows:
        times = [f"{row['seconds'][name] * 1e3:.3g}" if name in row["seconds"] else "" for name in names]
        rates = [f"{row[key][name]:.3g}" if name in row[key] else "" for name in ours for key in measures]
        table.add_row(
            ", ".join(row["dtypes"]), str(row["d"]), str(row["r"]), str(row["k"]), row["segments"], *times, *rates
        )
    console.print(table)


def main(
    quick: Annotated[bool, typer.Option(help="One shape, one layer: shows that everything runs.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    output: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
) -> None:
    """Measure, print the table and write the JSON file."""
    first = PREFERENCE[device][0]
    reason = BACKENDS[first].unavailable()
    if reason is not None:
        raise SystemExit(f"there is nothing to measure without the backend {first}: {reason}")
    console = Console(width=240)
    rounds = 3 if quick else ROUNDS
    most = ceilings(rounds) if device == "cuda" else {}
    rows = [
        kernel_row(lengths, r, d, k, dtypes, rounds, device, most.get("copy_bytes_per_s"))
        for dtypes, d, r, k in itertools.product(*SHAPES[device])
        for lengths in LENGTHS[device]
        if not quick or (d, r, k) == QUICK[device]
    ]
    results: dict[str, Any] = {
        "command": "python -m benchmarks.kernels" + f" --device {device}" * (device != "cpu") + " --quick" * quick,
        "machine": machine.describe(device),
        "rounds": rounds,
        **most,
    }
    if device == "cuda":
        console.print({name: f"{rate:.4g}" for name, rate in most.items()})
        results["ggn_project"] = streaming_rows(rounds, most["copy_bytes_per_s"])
        for row in results["ggn_project"]:
            console.print("ggn_project", {key: row[key] for key in ("d", "segments", "of_floor")})
        name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower())
    else:
        results["machine"]["instruction_set"] = instruction_set()
        results["scoring"] = scoring_share(3 if quick else 3 * ROUNDS, layers=1 if quick else 4)
        console.print("share of the variance in scoring:", results["scoring"]["share"])
        name = "cpu"
    print_rows(rows, console)
    results["kron_variance"] = rows
    path = output / (f"kernels-{name}-quick.json" if quick else f"kernels-{name}.json")
    path.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
