"""What the operations cost: every backend against the best plain-torch formulation, and their share of scoring.

python -m benchmarks.kernels                           # eight minutes on two cores
python -m benchmarks.kernels --part ggn_project        # one operation, or scoring, alone
python -m benchmarks.kernels --instruction-set avx2    # all of it as on a processor that has no wider one
python -m benchmarks.kernels --processor-time          # where others use the machine: of one thread
python -m benchmarks.kernels --device cuda             # on a GPU: fractions of the bandwidth that a copy reaches there
python -m benchmarks.kernels --quick                   # seconds; shows that everything runs
"""

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from bayesrm_fast.ops import ggn_project, kron_variance
from bayesrm_fast.ops.backends import BACKENDS, PREFERENCE, refusal, use_backend
from bayesrm_fast.ops.cpu import instruction_set
from bayesrm_fast.ops.cpu.binding import compiled
from bayesrm_fast.sites import Consumer
from benchmarks import machine
from benchmarks.data import RESULTS
from benchmarks.formulations import (
    GGN_NO_RIVALS,
    GGN_PLAIN_TORCH,
    LOSES_DIGITS,
    PLAIN_TORCH,
    batched_norms,
    ggn_inputs,
    inputs,
    rectangles,
)
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
GGN_SHAPES = ((FLOAT, HALF), (384, 768, 4096), (4, 8, 16), (32, 128), (1, 16, 64))
"""dtype of the bases, then d, r, K and the number of segments, of 128 tokens each."""
QUICK_GGN = (384, 8, 32)
ROUNDS = 9
PATIENCE = 0.1
"""Seconds that one formulation of one row may take in all: the large ones' temporaries are made of fresh pages."""
RANK, GGN_RANK = 64, 128

MEASURES = {
    "ratio_to_best_torch": "ratio",
    "gflops": "GFLOP/s",
    "q_gb_per_s": "q GB/s",
    "of_copy": "of copy",
    "of_floor": "of floor",
}

Timed = Callable[[Mapping[str, Callable[[], Any]]], dict[str, float]]
"""Gives the median seconds of formulations."""

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
    timed: Timed,
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
    seconds = timed(formulations)
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


def ggn_row(basis_dtype: torch.dtype, d: int, r: int, k: int, segments: int, timed: Timed) -> dict[str, Any]:
    """One shape of `ggn_project`: seconds of every formulation, the ratio to the best in torch, and the bases' rate."""
    arguments = p, q, _, bases = ggn_inputs(segments, r, d, k, basis_dtype)
    p, q = p.view(segments, -1, r), q.view(segments, -1, d)
    held = bases.double()
    formulations: dict[str, Callable[[], Any]] = {"cpu": lambda: ggn_project(*arguments)}
    formulations |= {
        name: lambda formula=formula, own=held if name == "held_in_float64" else bases: formula(p, q, own)
        for name, formula in GGN_PLAIN_TORCH.items()
    }
    seconds = timed(formulations)
    best = min(time for name, time in seconds.items() if name != "cpu" and name not in GGN_NO_RIVALS)
    return {
        "segments": f"{segments} × 128",
        "r": r,
        "d": d,
        "k": k,
        "bases": str(basis_dtype).removeprefix("torch."),
        "seconds": seconds,
        "ratio_to_best_torch": {"cpu": best / seconds["cpu"]},
        "bases_gb_per_s": bases.nbytes / 1e9 / seconds["cpu"],
    }


def scoring_share(timed: Timed, layers: int = 4) -> dict[str, Any]:
    """What the variance adds to scoring: time over the same forward and backward pass whose consumer does nothing."""
    from bayesrm_fast.model.passes import unit_cotangent
    from benchmarks.baselines import Nothing
    from benchmarks.shapes import LlamaShape, fitted, passes_of, random_ggn, random_pairs, random_rows

    shape = LlamaShape(512, layers, intermediate=1376)
    passes = passes_of(shape.model(), 4096)
    kfac = fitted(passes, random_pairs(4, 128), RANK)
    rows = random_rows([128] * 16)

    def score(make_consumer: Callable[[], Consumer], backend: str) -> Callable[[], None]:
        def run() -> None:
            with use_backend(backend):
                for _ in passes.over(rows, unit_cotangent, make_consumer):
                    pass

        return run

    consumers: dict[str, Callable[[], Consumer]] = {
        "kfac": kfac.variance_consumer,
        "ggn": random_ggn(kfac, GGN_RANK).variance_consumer,
    }
    variances = {
        (structure, backend): score(consumer, backend)
        for structure, consumer in consumers.items()
        for backend in PREFERENCE["cpu"]
    }
    named = {f"{structure}, {backend}": run for (structure, backend), run in variances.items()}
    seconds = timed({"nothing": score(Nothing, "auto"), **named})
    return {
        "hidden": shape.hidden,
        "layers": layers,
        "r": shape.r,
        "k": {"kfac": RANK, "ggn": GGN_RANK},
        "rows": "16 × 128",
        "seconds": seconds,
        "share": {
            structure: {
                backend: seconds[f"{structure}, {backend}"] / seconds["nothing"] - 1 for backend in PREFERENCE["cpu"]
            }
            for structure in consumers
        },
    }


def kron_rows(quick: bool, device: str, timed: Timed, copy_bytes_per_s: float | None) -> Iterator[dict[str, Any]]:
    """Of every shape, or of one."""
    for dtypes, d, r, k in itertools.product(*SHAPES[device]):
        for lengths in LENGTHS[device] if not quick or (d, r, k) == QUICK[device] else ():
            yield kernel_row(lengths, r, d, k, dtypes, timed, device, copy_bytes_per_s)


def ggn_rows(quick: bool, timed: Timed) -> Iterator[dict[str, Any]]:
    """Of every shape, or of one."""
    for basis_dtype, d, r, k, segments in itertools.product(*GGN_SHAPES):
        if not quick or (d, r, k) == QUICK_GGN:
            yield ggn_row(basis_dtype, d, r, k, segments, timed)


def print_row(row: dict[str, Any], console: Console) -> None:
    """A line: the shape, milliseconds of all, and each backend's ratio to the best in torch and its rates."""
    shape = {name: row[name] for name in ("dtypes", "bases", "d", "r", "k", "segments") if name in row}
    times = ", ".join(f"{name} {seconds * 1e3:.3g}" for name, seconds in row["seconds"].items())
    rates = ", ".join(
        f"{backend} {title} {rate:.3g}" for key, title in MEASURES.items() for backend, rate in row.get(key, {}).items()
    )
    console.print(f"{shape}: {times} ms; {rates}", soft_wrap=True)


def in_rows(measured: Iterable[dict[str, Any]], console: Console) -> dict[str, Any]:
    """Rows, printed as they come, and of the first backend's ratios to the best in torch what they are in all."""
    rows = []
    for row in measured:
        print_row(row, console)
        rows.append(row)
    ratios = [ratio for row in rows for ratio in list(row.get("ratio_to_best_torch", {}).values())[:1]]
    if not ratios:
        return {"rows": rows}
    found = {"least": min(ratios), "median": statistics.median(ratios), "slower": sum(ratio < 1 for ratio in ratios)}
    return {"over_best_torch": found, "rows": rows}


def limit_instruction_set(name: str) -> None:
    """Choose it for the C++ part, and keep torch from a wider one; to be called before torch computes anything."""
    compiled.choose_instruction_set(name)
    limits = {"ATEN_CPU_CAPABILITY": name, "MKL_ENABLE_INSTRUCTIONS": name.upper(), "ONEDNN_MAX_CPU_ISA": name.upper()}
    os.environ.update(limits)
    if torch.backends.cpu.get_cpu_capability() != name.upper():
        raise SystemExit(f"torch did not take the limit {name}; it says {torch.backends.cpu.get_cpu_capability()}")


def main(
    quick: Annotated[bool, typer.Option(help="One shape, one layer: shows that everything runs.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    part: Annotated[str, typer.Option(help="all, scoring, kron_variance or ggn_project.")] = "all",
    instruction_set_name: Annotated[
        str, typer.Option("--instruction-set", help="Of the C++ part and of torch; the widest by default.")
    ] = "",
    processor_time: Annotated[
        bool, typer.Option(help="Processor seconds of one thread: for a machine that others use.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
) -> None:
    """Measure, print rows as they come and write the JSON file; a part that is measured again replaces itself there."""
    first = PREFERENCE[device][0]
    reason = BACKENDS[first].unavailable()
    if reason is not None:
        raise SystemExit(f"there is nothing to measure without the backend {first}: {reason}")
    if instruction_set_name:
        limit_instruction_set(instruction_set_name)
    clock = time.perf_counter
    if processor_time:
        torch.set_num_threads(1)
        clock = time.process_time
    console = Console(width=240)
    rounds = 3 if quick else ROUNDS
    timed = partial(
        medians, rounds=rounds, device=device, patience=PATIENCE if device == "cpu" else float("inf"), clock=clock
    )
    most = ceilings(rounds) if device == "cuda" else {}
    circumstances: dict[str, Any] = {
        "machine": machine.describe(device),
        "clock": "processor time of one thread" if processor_time else "wall time",
        "rounds": rounds,
        **most,
    }
    if device == "cuda":
        console.print({name: f"{rate:.4g}" for name, rate in most.items()})
        name, on = machine.gpu_in_file_names(), ""
    else:
        circumstances["machine"]["instruction_set"] = instruction_set()
        name, on = "cpu", f", {instruction_set()}"
    path = output / f"kernels-{name}{'-quick' * quick}.json"
    results = json.loads(path.read_text()) if path.exists() else {}

    def measured() -> Iterator[tuple[str, dict[str, Any]]]:
        if device == "cpu" and part in ("all", "scoring"):
            whole = partial(medians, rounds=3 if quick else 3 * ROUNDS, clock=clock)
            yield "scoring", scoring_share(whole, layers=1 if quick else 4)
        if part in ("all", "kron_variance"):
            yield "kron_variance", in_rows(kron_rows(quick, device, timed, most.get("copy_bytes_per_s")), console)
        if part in ("all", "ggn_project"):
            rows = ggn_rows(quick, timed) if device == "cpu" else streaming_rows(rounds, most["copy_bytes_per_s"])
            yield "ggn_project", in_rows(rows, console)

    for operation, found in measured():
        console.print(operation, {key: found[key] for key in ("share", "over_best_torch") if key in found})
        results[operation + on] = {**circumstances, **found}
        path.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
