"""Which file of a folder is at fault when a library cannot load what the folder holds."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from tokenizers import Tokenizer

from bayesrm_fast.atomic import check_regular
from bayesrm_fast.errors import InputError

MODEL_FILES = ("config.json", "*.safetensors.index.json", "*.safetensors")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "tokenizer.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)


def check_files(folder: Path) -> None:
    """Raise InputError where a pipe or a folder stands in the place of a file that would be read."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt", ".bin"):
            check_regular(path)


@contextlib.contextmanager
def naming_damage(
    what: str, folder: Path | str, patterns: Iterable[str], failure: str = "cannot be loaded"
) -> Iterator[None]:
    """Turn whatever a library raises while it loads into an InputError; arguments as those of `cannot_load`."""
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise InputError(f"{what} brings code of its own: pass trust_remote_code=True to run it") from error
        raise cannot_load(what, folder, patterns, error, failure) from error


def cannot_load(
    what: str, folder: Path | str, patterns: Iterable[str], error: Exception, failure: str = "cannot be loaded"
) -> InputError:
    """What a caller is told of a library's error, whatever its kind.

    Args:
        what: is loaded.
        folder: from where; or a name on the hub.
        patterns: of the files that it is loaded from.
        error: the library's.
        failure: what has failed.

    Returns:
        An error that names the damaged file; where none is damaged by itself, all those that do not fit together.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = next((line.strip() for line in lines if not line.endswith(":")), lines[0])  # torch announces what follows
    if not isinstance(error, (OSError, ValueError, RuntimeError)):  # others, such as KeyError, mean little unnamed
        line = f"{type(error).__name__}: {line}"
    files = [path for pattern in patterns for path in sorted(Path(folder).glob(pattern)) if path.is_file()]
    for path in files:
        try:
            _check(path)
        except Exception as fault:
            return InputError(f"{what} {failure}: {path} is damaged ({str(fault).splitlines()[0]})")
    among = f" (from {', '.join(map(str, files))})" if files else ""
    return InputError(f"{what} {failure}: {line}{among}")


def _check(path: Path) -> None:
    """Read a file as its name says; raises whatever its reader raises."""
    checks: dict[str, Callable[[Path], Any]] = {
        ".safetensors": _check_tensors,
        ".json": _check_json,
        ".jinja": lambda template: template.read_text(encoding="utf-8"),
    }
    checks[path.suffix](path)
    if path.name == "tokenizer.json":
        Tokenizer.from_file(str(path))


def _check_tensors(path: Path) -> None:
    with safe_open(path, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            tensors.get_slice(name)


def _check_json(path: Path) -> None:
    if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
        raise ValueError("not a JSON object")
