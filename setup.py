"""Builds the compiled part with CMake; pyproject.toml has everything else."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configure, build and put the module where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        """Raise CompileError where there is no compiler; the package then runs without its compiled part."""
        built = Path(self.build_temp).resolve()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(built), "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            "-DBAYESRM_SANITIZE=OFF",  # whatever an earlier run left in the build folder
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(built)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"bayesrm_fast is built without its C++ part: {error}") from error


setup(
    ext_modules=[Extension("bayesrm_fast._cpu", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
