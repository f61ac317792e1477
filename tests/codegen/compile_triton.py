"""Compiles every Triton kernel for chips that are not here, and prints what came out as JSON lines.

A process of its own: the tests run the kernels in the interpreter, which replaces the compiler when triton is imported.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bayesrm_fast.ops.chips import A100, H100, Chip
from bayesrm_fast.ops.triton import ggn_project, kron_project, kron_variance, segment_outer
from bayesrm_fast.ops.triton.configs import (
    MOST_ROWS_A_PROGRAM,
    needs_digits,
    product_tiles,
    stream_tiles,
    tiles,
    widens,
)

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# None: of the inputs' dtype; all others are float32
POINTERS = {"p": None, "q": None, "offsets": "*i64", "bases": "*bf16", "products": "*fp64", "squared_norm": "*fp64"}
SIZES = {"tokens", "r", "d", "k", "per_program", "splits", "count", "pieces", "size"}

SHAPES = [(8, 4096, 16), (16, 4096, 64), (32, 768, 64), (64, 14336, 64), (256, 32768, 256), (1, 33, 3)]
KERNELS = {
    "rotate_rows": kron_project.rotate_rows,
    "project_tiles": kron_project.project_tiles,
    "outside_tiles": kron_project.outside_tiles,
    "sum_splits": kron_project.sum_splits,
    "weigh_splits": kron_variance.weigh_splits,
    "store_tiles": segment_outer.store_tiles,
    "stream_bases": ggn_project.stream_bases,
    "multiply_gradients": ggn_project.multiply_gradients,
    "sum_pieces": ggn_project.sum_pieces,
}
ONE_DTYPE = ("rotate_rows", "outside_tiles")
"""Of p and q; the others take p in float32 beside q in bfloat16, the heavier of what a bfloat16 model hands over."""
OWN_BLOCKS = {
    "rotate_rows": kron_project.ROTATE_BLOCKS,
    "sum_splits": kron_project.SUM_BLOCKS,
    "weigh_splits": kron_project.SUM_BLOCKS,
    "sum_pieces": ggn_project.SUM_BLOCKS | {"DIGITS": True},
}
RESOURCES: dict[tuple[Any, ...], dict[str, Any]] = {}
"""Of what has been compiled: several shapes are launched alike."""

LEAST_SHARED_MEMORY = 64 * 1024
"""Of any chip with a matrix unit: blocks that no chip is asked about must fit."""


def launched(
    kernel_name: str, r: int, d: int, k: int, p: torch.dtype, q: torch.dtype, chip: Chip
) -> tuple[dict[str, Any], Any, int]:
    """Blocks and flags, tiles if there are any, and the bound of the shared memory."""
    if kernel_name in OWN_BLOCKS:
        return OWN_BLOCKS[kernel_name], None, LEAST_SHARED_MEMORY
    if kernel_name == "stream_bases":
        t: Any = stream_tiles(d, k, p, q)
        blocks = {"R": t.rows, "KC": t.bases, "CHUNKS": t.chunks, "BD": t.columns, "BT": t.tokens}
        return blocks | {"WIDEN": widens(p, q), "DIGITS": needs_digits(q)}, t, LEAST_SHARED_MEMORY
    if kernel_name == "multiply_gradients":
        t = product_tiles(k)
        return {"S": t.segments, "KC": t.bases, "BD": t.columns, "SPLIT_BASES": False}, t, LEAST_SHARED_MEMORY
    second_pass = kernel_name == "outside_tiles"
    t = tiles(r, d, k, p, q, chip, second_pass)
    blocks = {"R": t.rows, "KC": t.basis, "BD": t.columns, "BT": t.tokens}
    flags = {"WIDEN": widens(p, q), "ROTATE": r <= MOST_ROWS_A_PROGRAM}
    return blocks | flags, t, t.shared_memory(p, q, second_pass)


def compiled(
    kernel_name: str, r: int, d: int, k: int, dtype: str, chip: Chip, bases: str = POINTERS["bases"]
) -> dict[str, Any]:
    """Resources of one kernel, as it would be launched at this shape."""
    kernel = KERNELS[kernel_name]
    float_p = kernel_name not in ONE_DTYPE or (r > MOST_ROWS_A_PROGRAM and kernel_name == "outside_tiles")
    q = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    blocks, t, bound = launched(kernel_name, r, d, k, torch.float32 if float_p else q, q, chip)
    options = {} if t is None else {"num_warps": t.warps, "num_stages": t.stages}
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in blocks:
            signature[name], constants[(i,)] = "constexpr", blocks[name]
        elif name in SIZES:
            signature[name] = "i32"
        else:
            signature[name] = bases if name == "bases" else POINTERS.get(name, "*fp32") or f"*{dtype}"
            if name == "p" and float_p:
                signature[name] = "*fp32"
        if signature[name].startswith("*") or (name in ("d", "size") and d % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    key = (kernel_name, chip.capability, *map(repr, (signature, constants, attributes, options)))
    if key not in RESOURCES:
        RESOURCES[key] = resources(source, chip, options)
    return {**RESOURCES[key], "bound": bound, "limit": chip.shared_memory}


def resources(source: ASTSource, chip: Chip, options: dict[str, int]) -> dict[str, Any]:
    """What the compiler says of one kernel."""
    target = GPUTarget("cuda", chip.capability, 32)
    done = triton.compile(source, target=target, options=options | {"enable_fp_fusion": True})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(done.asm["cubin"])
        cubin.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", cubin.name], check=True, capture_output=True, text=True).stdout
        sass = subprocess.run([CUOBJDUMP, "-sass", cubin.name], check=True, capture_output=True, text=True).stdout
    found = {name.lower(): int(re.search(rf"{name}:(\d+)", usage).group(1)) for name in ("REG", "STACK", "LOCAL")}
    return {
        **found,
        "shared": done.metadata.shared,
        "matrix_unit": "HMMA" in sass or "HGMMA" in sass,
        "float64": re.search(r"\b(DADD|DMUL|DFMA)\b", sass) is not None,
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        "wide_loads": re.search(r"LDG(STS)?\.E[.\w]*\.128", sass) is not None,
    }


def main() -> None:
    """Every kernel at every shape, dtype and chip; or the kernel that the command line names."""
    for name in KERNELS:
        if name not in (sys.argv[1:] or KERNELS):
            continue
        for r, d, k in SHAPES:
            for dtype in ("bf16", "fp32") if name != "multiply_gradients" else ("bf16",):
                for chip in (A100, H100):
                    row = compiled(name, r, d, k, dtype, chip)
                    print(
                        json.dumps({"kernel": name, "shape": [r, d, k], "dtype": dtype, "sm": chip.capability, **row}),
                        flush=True,
                    )
        if name in ("stream_bases", "multiply_gradients"):
            row = compiled(name, 16, 4096, 64, "bf16", H100, "*i8")
            named = {"kernel": name, "shape": [16, 4096, 64], "dtype": "bf16", "sm": H100.capability}
            print(json.dumps(named | row), flush=True)


if __name__ == "__main__":
    main()
