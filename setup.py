"""Builds the compiled parts with CMake; pyproject.toml has everything else.

`BAYESRM_CUDA`: `0` leaves the CUDA part out, `1` insists on it, `auto` builds it where nvcc is found.
`BAYESRM_CUDA_ARCHS`: for which chips, as CMake's `CUDA_ARCHITECTURES`.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


def nvcc() -> str | None:
    """Where the CUDA compiler is, as CMake would look for it, and in CUDA's own folder."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def extensions() -> list[Extension]:
    """The C++ part; the CUDA part where it is wanted. An optional one may fail, and the package then runs without."""
    found = [Extension("bayesrm_fast._cpu", sources=[], optional=True)]
    wanted = os.environ.get("BAYESRM_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        raise SystemExit(f"BAYESRM_CUDA must be 0, 1 or auto, not {wanted!r}")
    if wanted == "1" or (wanted == "auto" and nvcc() is not None):
        found.append(Extension("bayesrm_fast._cuda", sources=[], optional=wanted == "auto"))
    return found


class CMakeBuild(build_ext):
    """Configure, build and put each module where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        """Raise CompileError where there is no compiler."""
        name = ext.name.rpartition(".")[2]
        built = Path(self.build_temp).resolve() / name
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(built), "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            "-DBAYESRM_SANITIZE=OFF",  # whatever an earlier run left in the build folder
            *self.cuda_options(name),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(built), "--target", name], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            language = {"_cpu": "C++", "_cuda": "CUDA"}[name]
            raise CompileError(f"bayesrm_fast is built without its {language} part: {error}") from error

    def cuda_options(self, name: str) -> list[str]:
        """What CMake is told of CUDA."""
        if name != "_cuda":
            return ["-DBAYESRM_CUDA=OFF"]
        options = ["-DBAYESRM_CUDA=ON"]
        if nvcc() is not None:
            options.append(f"-DCMAKE_CUDA_COMPILER={nvcc()}")
        if "BAYESRM_CUDA_ARCHS" in os.environ:
            options.append(f"-DBAYESRM_CUDA_ARCHS={os.environ['BAYESRM_CUDA_ARCHS']}")
        return options


setup(ext_modules=extensions(), cmdclass={"build_ext": CMakeBuild})
