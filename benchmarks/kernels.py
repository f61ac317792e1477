"""What the operations cost: C++ against the best plain-torch formulation, and their share of scoring.

    python -m benchmarks.kernels            # three minutes on two cores
    python -m benchmarks.kernels --quick    # seconds; shows that everything runs

Formulations take turns within a row, so that a machine that slows down slows all of them; a time is a median.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bayesrm_fast.ops import kron_variance
from bayesrm_fast.ops.backends import use_backend
from bayesrm_fast.ops.cpp import instruction_set, unavailable
from benchmarks import machine
from benchmarks.data import RESULTS

TOKENS = 8192
LENGTHS = {
    "64 × 128": [128] * 64,
    "16 × 512": [512] * 16,
    "16 to 512": [16, 512, 48, 300, 128, 77, 401, 211, 33, 509, 150, 64, 97, 256, 19, 490] * 2 + [1000, 570],
}
ROUNDS = 9


def medians(formulations: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, one call of each in turn."""
    for run in formulations.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in formulations}
    for _ in range(rounds):
        for name, run in formulations.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def batched(
    p: Tensor, q: Tensor, offsets: Tensor, basis_p: Tensor, basis_q: Tensor, weight: Tensor, residual: Tensor
) -> Tensor:
    """`kron_variance` as three batched products; segments of different lengths are padded with zeros."""
    lengths = offsets.diff()
    longest = int(lengths.max())
    p, q = p.float() @ basis_p, q.float()
    if bool((lengths == longest).all()):
        p, q = p.view(-1, longest, p.shape[1]), q.view(-1, longest, q.shape[1])
    else:
        bounds = lengths.tolist()
        p, q = (torch.nn.utils.rnn.pad_sequence(x.split(bounds), batch_first=True) for x in (p, q))
    gradients = torch.bmm(p.transpose(1, 2), q)
    coordinates = gradients @ basis_q
    outside = gradients - coordinates @ basis_q.T
    return (weight * coordinates.square()).sum((1, 2)) + outside.square().sum(-1) @ residual


def inputs(lengths: list[int], r: int, d: int, k: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Random arguments of `kron_variance`; U is stored by columns, as a posterior holds it."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(lengths)
    p, q = (torch.randn(tokens, size, generator=generator).to(dtype) for size in (r, d))
    offsets = torch.tensor([0, *itertools.accumulate(lengths)])
    basis_p = torch.linalg.qr(torch.randn(r, r, generator=generator)).Q.contiguous()
    basis_q = torch.linalg.qr(torch.randn(d, k, generator=generator)).Q.T.contiguous().T
    return p, q, offsets, basis_p, basis_q, torch.rand(r, k, generator=generator), torch.rand(r, generator=generator)


def kernel_row(lengths: str, r: int, d: int, k: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """One shape: seconds of every formulation, the ratio to the best one, arithmetic rate and rate of reading q."""
    arguments = inputs(LENGTHS[lengths], r, d, k, dtype)

    def by(backend: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with use_backend(backend):
                return kron_variance(*arguments)

        return run

    seconds = medians({"cpp": by("cpp"), "looped": by("reference"), "batched": lambda: batched(*arguments)}, rounds)
    tokens, segments = arguments[1].shape[0], len(LENGTHS[lengths])
    flops = 2 * tokens * r * (d + r) + 4 * segments * r * d * k
    best = min(seconds["looped"], seconds["batched"])
    return {
        "segments": lengths,
        "r": r,
        "d": d,
        "k": k,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": seconds,
        "ratio_to_best_torch": best / seconds["cpp"],
        "gflops": flops / seconds["cpp"] / 1e9,
        "q_gb_per_s": arguments[1].nbytes / seconds["cpp"] / 1e9,
    }


def scoring_share(rounds: int, layers: int = 4) -> dict[str, Any]:
    """What the variance adds to scoring: time over the same forward and backward pass whose consumer does nothing."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from bayesrm_fast.passes import Passes, row_cotangent
    from bayesrm_fast.posterior import KroneckerBlock
    from bayesrm_fast.sites import Site, find_lora_taps
    from bayesrm_fast.taps import TappedModel
    from bayesrm_fast.text import TokenizedText

    torch.manual_seed(0)
    hidden, rank, r = 512, 64, 8
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=1376,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_labels=1,
        pad_token_id=0,
    )
    model = get_peft_model(
        LlamaForSequenceClassification(config),
        LoraConfig(task_type="SEQ_CLS", r=r, target_modules="all-linear", modules_to_save=[]),
    ).eval()
    taps = find_lora_taps(model)
    tapped = TappedModel(model, taps, torch.ones(1))
    passes = Passes(tapped, 0, 1000, 4096, torch.device("cpu"))
    rows = [(TokenizedText(torch.randint(1, 1000, (128,)).tolist(), None, False),) for _ in range(16)]
    blocks: dict[str, KroneckerBlock] = {}

    class Nothing:
        def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
            pass

    class Variance:
        def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
            if site.name not in blocks:
                k = min(rank, site.d)
                basis_p = torch.linalg.qr(torch.randn(site.r, site.r)).Q.contiguous()
                basis_q = torch.linalg.qr(torch.randn(site.d, k)).Q.T.contiguous().T
                blocks[site.name] = KroneckerBlock(basis_p, basis_q, torch.rand(site.r, k), torch.rand(site.r))
            b = blocks[site.name]
            kron_variance(p, q, offsets, b.basis_p, b.basis_q, b.eigenvalues, b.tail)

    def score(consumer: type, backend: str) -> Callable[[], None]:
        def run() -> None:
            with use_backend(backend):
                for _ in passes.over(rows, row_cotangent, lambda _: consumer()):
                    pass

        return run

    seconds = medians(
        {
            "nothing": score(Nothing, "auto"),
            "cpp": score(Variance, "cpp"),
            "reference": score(Variance, "reference"),
        },
        rounds,
    )
    shares = {name: seconds[name] / seconds["nothing"] - 1 for name in ("cpp", "reference")}
    return {
        "hidden": hidden,
        "layers": layers,
        "r": r,
        "k": rank,
        "rows": "16 × 128",
        "seconds": seconds,
        "share": shares,
    }


def main(
    quick: Annotated[bool, typer.Option(help="Two shapes, one layer: shows that everything runs.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
) -> None:
    """Measure, print the table and write the JSON file."""
    reason = unavailable()
    if reason is not None:
        raise SystemExit(reason)
    console = Console()
    rounds = 3 if quick else ROUNDS
    shapes = [
        (lengths, r, d, k, dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for d in (384, 768, 4096)
        for r in (4, 8, 16, 64)
        for k in (16, 64)
        for lengths in LENGTHS
        if not quick or (d, r, k) == (384, 8, 16)
    ]
    rows = [kernel_row(*shape, rounds) for shape in shapes]
    table = Table("dtype", "d", "r", "k", "segments", "C++ ms", "looped", "batched", "ratio", "GFLOP/s", "q GB/s")
    for row in rows:
        times = (f"{row['seconds'][name] * 1e3:.2f}" for name in ("cpp", "looped", "batched"))
        rates = (f"{row[name]:.1f}" for name in ("gflops", "q_gb_per_s"))
        sizes = (row["dtype"], str(row["d"]), str(row["r"]), str(row["k"]), row["segments"])
        table.add_row(*sizes, *times, f"{row['ratio_to_best_torch']:.2f}", *rates)
    console.print(table)
    share = scoring_share(3 if quick else 3 * ROUNDS, layers=1 if quick else 4)
    console.print("share of the variance in scoring:", share["share"])
    results = {
        "command": "python -m benchmarks.kernels" + (" --quick" if quick else ""),
        "machine": machine.describe() | {"instruction_set": instruction_set()},
        "rounds": rounds,
        "kron_variance": rows,
        "scoring": share,
    }
    path = output / ("kernels-cpu-quick.json" if quick else "kernels-cpu.json")
    path.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
