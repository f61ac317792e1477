"""The compiled part: every instruction set, its scratch memory, and how it is built."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import GGN_CASES
from formulas import close, formulas, ggn_close, ggn_formulas, ggn_inputs, made

from bayesrm_fast import ops
from bayesrm_fast.ops.backends import use_backend
from bayesrm_fast.ops.cpu import unavailable
from bayesrm_fast.ops.cpu.binding import compiled

ROOT = Path(__file__).resolve().parents[2]
OPENMP = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
NAMES = ["generic", "avx2", "avx512"]

needs_compiled = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")


@needs_compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", GGN_CASES)
@pytest.mark.parametrize("name", NAMES)
def test_every_instruction_set(name, case, dtype):
    if name not in compiled.instruction_sets():
        pytest.skip(f"this processor has no {name}")
    arguments, with_bases = made(*GGN_CASES[case], dtype), ggn_inputs(case, dtype, dtype)
    before = compiled.instruction_set()
    compiled.choose_instruction_set(name)
    try:
        with use_backend("cpu"):
            variance = ops.kron_variance(*arguments)
            gradients = ops.segment_outer(*arguments[:3])
            products = ops.ggn_project(*with_bases)
    finally:
        compiled.choose_instruction_set(before)
    expected = formulas(*arguments)
    close(gradients, expected[0], dtype)
    close(variance, expected[-1], dtype)
    ggn_close(products, ggn_formulas(*with_bases), dtype)


@needs_compiled
def test_the_widest_instruction_set_is_chosen():
    assert compiled.instruction_set() == compiled.instruction_sets()[0]
    with pytest.raises(ValueError, match="this processor cannot run sse9"):
        compiled.choose_instruction_set("sse9")


@needs_compiled
@pytest.mark.skipif(not OPENMP.exists(), reason="torch has no OpenMP of its own by the name that gcc links")
def test_the_compiled_part_shares_the_openmp_of_torch():
    code = "import bayesrm_fast.ops.compiled, bayesrm_fast._cpu; print(open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {line.split()[-1] for line in done.stdout.splitlines() if "libgomp" in line} == {str(OPENMP)}


@needs_gcc
@pytest.mark.parametrize(("name", "flags"), [("avx512", "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma")])
def test_no_library_code_is_built_for_one_instruction_set(name, flags, tmp_path):
    """The linker keeps one copy of a template for all objects: it must not be one that other processors cannot run."""
    source = ROOT / "csrc" / "cpu" / "isa.cpp"
    built = tmp_path / "isa.o"
    options = ["-std=c++20", "-O3", "-fPIC", "-fopenmp", f"-DBAYESRM_ISA={name}", *flags.split()]
    subprocess.run(["g++", *options, "-c", source, "-o", built], check=True)
    symbols = subprocess.run(["nm", "-C", built], check=True, capture_output=True, text=True).stdout.splitlines()
    weak = [line.split(maxsplit=2)[2] for line in symbols if line.split()[-2:] and line[17:18] in "WV"]
    shared = [symbol for symbol in weak if f"bayesrm::{name}::" not in symbol and not symbol.startswith("DW.ref.")]
    assert len(weak) > 10
    assert not shared


@needs_compiled
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_scratch_memory_stays_under_8_mib():
    code = """
import torch
from bayesrm_fast.ops.cpu.ggn_project import ggn_project
from bayesrm_fast.ops.cpu.kron_variance import kron_variance

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

def arguments(n, r, d, k):
    offsets = torch.arange(n + 1) * 64
    u = torch.randn(k, d).T
    return torch.randn(n * 64, r), torch.randn(n * 64, d), offsets, torch.eye(r), u, torch.rand(r, k), torch.rand(r)

torch.set_num_threads(2)
kron_variance(*arguments(4, 8, 64, 16))  # threads and their stacks are there now
for shape in ((64, 16, 4096, 64), (16, 64, 14336, 64), (4, 64, 32768, 16)):
    large = arguments(*shape)
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before = peak()
    kron_variance(*large)
    print(peak() - before)
    p, q, offsets, *_ = large
    bases = torch.randn(20, p.shape[1], q.shape[1], dtype=torch.bfloat16)
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    ggn_project(p, q, offsets, bases)
    print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert all(int(kib) < 8 * 1024 for kib in done.stdout.split()), done.stdout
