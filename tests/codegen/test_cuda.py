"""What nvcc makes of the CUDA files, for chips that are not here."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bayesrm_fast.ops.cuda.binding import compiled, missing

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
TRITON = importlib.util.find_spec("triton")
# R of 16, 32, 64 by K of 16, 64. p and bases are in float32 or bfloat16.
KERNELS = {"projection": 6, "projection_sm80": 6, "projection_sm90": 6, "halves": 2, "ggn": 7}
# The one CUDA disassembler that comes from the package index.
CUOBJDUMP = TRITON and Path(TRITON.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc here")
needs_cuobjdump = pytest.mark.skipif(
    not (CUOBJDUMP and CUOBJDUMP.exists()), reason="triton, which has cuobjdump, is not here"
)


@needs_nvcc
@needs_cuobjdump
@pytest.mark.parametrize("architecture", ["80", "90a"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_kernels_spill_nothing_and_use_the_units_they_are_for(source, architecture, tmp_path):
    built = tmp_path / "built.o"
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    command = ["nvcc", "-std=c++20", "-O3", "-Xptxas", "-v", "-gencode", target, "-c", source, "-o", built]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) == KERNELS[source.stem]
    assert {number for spill in spills for number in spill} == {"0"}, report
    assert "bytes smem" not in report  # static shared memory would come on top of what a launch asks for
    assert "C7508" not in report  # the compiler's word that it leaves setmaxnreg out
    listing = subprocess.run([CUOBJDUMP, "-sass", built], check=True, capture_output=True, text=True).stdout
    if source.stem == "projection_sm80":
        assert "HMMA.16816.F32.BF16" in listing
        assert "LDGSTS.E.BYPASS.128" in listing  # copies of 16 bytes past the first cache
    elif source.stem == "ggn":
        assert "HMMA.16816.F32.BF16" in listing
        assert len(re.findall(r"LDG\.E\.NA\.128", listing)) >= 6 * 8  # of each kernel, under way at once
        assert "CCTL.E.PF2" in listing  # what is prefetched into the second cache
        assert len(re.findall(r"\bD(ADD|MUL|FMA)\b", listing)) == 1  # of float64, where a result is written
    elif source.stem == "projection_sm90" and architecture == "90a":
        assert "HMMA.16816.F32.BF16" in listing
        assert "UTMALDG.2D" in listing  # bulk copies of a tensor's boxes
        assert "USETMAXREG" in listing
    assert not re.search(r"\b(STL|LDL)\b", listing)


@pytest.mark.skipif(missing is not None, reason=str(missing))
def test_the_built_part_says_what_it_is_for_and_fails_by_name_without_a_device():
    # A process of its own: on a machine with a GPU, device 99 is what is not there.
    assert "90a" in compiled.architectures
    code = "from bayesrm_fast import _cuda; _cuda.require_kernels(99)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert re.search(r"RuntimeError: the (current|tensors') device: cudaError\w+, ", done.stderr), done.stderr


@needs_nvcc
def test_where_there_is_nvcc_the_cuda_part_was_built():
    assert missing is None
