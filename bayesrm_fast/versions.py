"""Versions of the libraries that numbers rest on."""

import importlib.metadata


def library_versions() -> dict[str, str]:
    """Of this package and those whose numbers a posterior rests on."""
    found = {}
    for name in ("bayesrm_fast", "torch", "transformers", "peft"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
