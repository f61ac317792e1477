"""How setup.py builds the compiled parts, and what it does where a compiler is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")


def build(tmp_path, **variables):
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "setup.py", "-q", "build_ext", "-b", tmp_path / "lib", "-t", tmp_path / "temp"]
    environment = os.environ | {"PATH": paths} | variables
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    names = {path.name.split(".")[0] for path in tmp_path.glob("lib/bayesrm_fast/*.so")}
    return done.returncode, done.stdout + done.stderr, names


@needs_compiler
@pytest.mark.parametrize(
    ("wanted", "ends_well", "said"),
    [
        ("auto", True, "bayesrm_fast is built without its CUDA part"),
        ("1", False, "bayesrm_fast is built without its CUDA part"),
        ("yes", False, "BAYESRM_CUDA must be 0, 1 or auto, not 'yes'"),
    ],
)
def test_a_broken_nvcc_ends_a_build_only_where_it_is_insisted_on(wanted, ends_well, said, tmp_path):
    code, output, built = build(tmp_path, BAYESRM_CUDA=wanted, CUDACXX="/no/such/nvcc")
    assert (code == 0) == ends_well, output
    assert said in output
    assert built == (set() if wanted == "yes" else {"_cpu"})


@needs_compiler
@pytest.mark.parametrize("compiler", ["/no/such/compiler", None])
def test_building_with_and_without_a_compiler(compiler, tmp_path):
    code, output, built = build(tmp_path, BAYESRM_CUDA="0", **({} if compiler is None else {"CXX": compiler}))
    assert code == 0, output
    assert built == ({"_cpu"} if compiler is None else set())
    assert ("built without its C++ part" in output) == (compiler is not None)


def test_what_is_no_python_is_packed(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    for name in ("py.typed", "serve/page.html", "evaluate/scores_page.html"):
        assert (tmp_path / "bayesrm_fast" / name).is_file()
