"""Finds the compiled modules, any of which may be missing."""

import importlib
from typing import Any


def compiled_part(name: str, compiler: str) -> tuple[Any, str | None]:
    """The module `bayesrm_fast.<name>`, or None and why it is not there."""
    try:
        return importlib.import_module(f"bayesrm_fast.{name}"), None
    except ImportError as error:
        return None, f"the compiled part is not here ({error}); install with {compiler} at hand"
