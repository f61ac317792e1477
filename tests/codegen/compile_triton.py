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

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bayesrm_fast.ops.configs import A100, H100, MOST_ROWS, Chip, tiles
from bayesrm_fast.ops.triton import kron_project, kron_variance, segment_outer

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
POINTERS = {"p": None, "q": None, "offsets": "*i64"}  # None: of the inputs' dtype; all others are float32
SIZES = {"tokens", "r", "d", "k", "per_program", "splits"}

SHAPES = [(8, 4096, 16), (16, 4096, 64), (32, 768, 64), (64, 14336, 64), (256, 32768, 256), (1, 33, 3)]
KERNELS = {
    "rotate_rows": kron_project.rotate_rows,
    "project_tiles": kron_project.project_tiles,
    "outside_tiles": kron_project.outside_tiles,
    "sum_splits": kron_project.sum_splits,
    "weigh_splits": kron_variance.weigh_splits,
    "store_tiles": segment_outer.store_tiles,
}


def compiled(kernel: Any, r: int, d: int, k: int, dtype: str, chip: Chip) -> dict[str, Any]:
    """Resources of one kernel, as it would be launched at this shape."""
    rotated_before = r > MOST_ROWS and kernel not in (KERNELS["store_tiles"], KERNELS["rotate_rows"])
    itemsize = 4 if dtype == "fp32" or rotated_before else 2
    t = tiles(r, d, k, itemsize, chip, second_pass=kernel is KERNELS["outside_tiles"])
    blocks = {"R": t.rows, "KC": t.basis, "BD": t.columns, "BT": t.tokens}
    if kernel in (KERNELS["sum_splits"], KERNELS["weigh_splits"]):
        blocks |= kron_project.SUM_BLOCKS
    blocks |= {"WIDEN": itemsize == 4, "ROTATE": r <= MOST_ROWS}
    if kernel is KERNELS["rotate_rows"]:
        blocks |= {"BT": 64, "R": 64, "BK": 32}
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in blocks:
            signature[name], constants[(i,)] = "constexpr", blocks[name]
        elif name in SIZES:
            signature[name] = "i32"
        else:
            signature[name] = POINTERS.get(name, "*fp32") or f"*{dtype}"
            if name == "p" and rotated_before:
                signature[name] = "*fp32"
        if signature[name].startswith("*") or (name == "d" and d % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": t.warps, "num_stages": t.stages, "enable_fp_fusion": True}
    done = triton.compile(source, target=GPUTarget("cuda", chip.capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(done.asm["cubin"])
        cubin.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", cubin.name], check=True, capture_output=True, text=True).stdout
        sass = subprocess.run([CUOBJDUMP, "-sass", cubin.name], check=True, capture_output=True, text=True).stdout
    found = {name.lower(): int(re.search(rf"{name}:(\d+)", usage).group(1)) for name in ("REG", "STACK", "LOCAL")}
    return {
        **found,
        "shared": done.metadata.shared,
        "bound": t.shared_memory(itemsize),
        "limit": chip.shared_memory,
        "matrix_unit": "HMMA" in sass or "HGMMA" in sass,
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        "wide_loads": re.search(r"LDG(STS)?\.E[.\w]*\.128", sass) is not None,
    }


def main() -> None:
    """Every kernel at every shape, dtype and chip; or the kernel that the command line names."""
    for name, kernel in KERNELS.items():
        if name not in (sys.argv[1:] or KERNELS):
            continue
        for r, d, k in SHAPES:
            for dtype in ("bf16", "fp32"):
                for chip in (A100, H100):
                    row = compiled(kernel, r, d, k, dtype, chip)
                    print(
                        json.dumps({"kernel": name, "shape": [r, d, k], "dtype": dtype, "sm": chip.capability, **row}),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
