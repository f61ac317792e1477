"""Finds the compiled modules, any of which may be missing."""

import importlib
from typing import Any

# First, so that its OpenMP is the one in the process: a compiled module would bring a second, whose threads get in the way
# of torch's.
import torch  # noqa: F401


def compiled_part(name: str, compiler: str) -> tuple[Any, str | None]:
    """The module `bayesrm_fast.<name>`, or None and why it is not there."""
    try:
        return importlib.import_module(f"bayesrm_fast.{name}"), None
    except ImportError as error:
        return None, f"the compiled part is not here ({error}); install with {compiler} at hand"
