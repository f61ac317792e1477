"""Which file of a folder is at fault when a library cannot load what the folder holds."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import safe_open
from tokenizers import Tokenizer

from bayesrm_fast.errors import InputError

MODEL_FILES = ("config.json", "*.safetensors.index.json", "*.safetensors")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "tokenizer.json",
)


def cannot_load(what: str, folder: Path | str, patterns: Iterable[str], error: Exception) -> InputError:
    """What a caller is told of a library's error, whatever its kind.

    Args:
        what: is loaded.
        folder: from where; or a name on the hub.
        patterns: of the files that it is loaded from.
        error: the library's.

    Returns:
        An error that names the damaged file; where none is damaged by itself, all those that do not fit together.
    """
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not isinstance(error, (OSError, ValueError)):  # others, such as KeyError, mean little without their name
        line = f"{type(error).__name__}: {line}"
    files = [path for pattern in patterns for path in sorted(Path(folder).glob(pattern)) if path.is_file()]
    for path in files:
        try:
            _check(path)
        except Exception as fault:
            return InputError(f"{what} cannot be loaded: {path} is damaged ({str(fault).splitlines()[0]})")
    among = f" from {', '.join(map(str, files))}" if files else ""
    return InputError(f"{what} cannot be loaded{among}: {line}")


def _check(path: Path) -> None:
    """Read a file as its name says; raises whatever its reader raises."""
    checks: dict[str, Callable[[Path], None]] = {".safetensors": _check_tensors, ".json": _check_json}
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
