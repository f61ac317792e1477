"""Finds the compiled modules, any of which may be missing."""

import importlib
from typing import Any

# First, so that its OpenMP is the one in the process: a compiled module that came before would load another beside it,
# and the threads of the two would get in each other's way.
import torch  # noqa: F401


def compiled_part(name: str, compiler: str) -> tuple[Any, str | None]:
    """The module `bayesrm_fast.<name>`, or None and why it is not there."""
    try:
        return importlib.import_module(f"bayesrm_fast.{name}"), None
    except ImportError as error:
        return None, f"the compiled part is not here ({error}); install with {compiler} at hand"
