"""What a formula over candidates refuses."""

import math

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError, shown
from bayesrm_fast.schema import LARGEST_INTEGER


def finite_values(values: Tensor, name: str) -> Tensor:  # shape: (n,) -> (n,)
    """A value for each of n ≥ 1 candidates as float64 on the CPU.

    Raises:
        InputError: not a tensor `[n]`, no candidate, or a value that is not finite, by its position.
    """
    if not isinstance(values, Tensor) or values.ndim != 1 or len(values) == 0:
        given = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"{name} must be a tensor [n] with a value for each of at least one candidate, not {given}")
    held = values.detach().to("cpu", torch.float64)
    if not bool(held.isfinite().all()):
        position = int(torch.nonzero(~held.isfinite())[0])
        raise InputError(f"{name} must be finite numbers; at position {position} is {float(held[position])}")
    return held


def finite_stds(values: Tensor, count: int) -> Tensor:  # shape: (n,) -> (n,)
    """Standard deviations of `count` candidates as float64 on the CPU.

    Raises:
        InputError: what `finite_values` refuses, another number of them, or a negative one, by its position.
    """
    held = finite_values(values, "std")
    if len(held) != count:
        raise InputError(f"std must have a value for each of {count} candidates, not {len(held)}")
    wrong = torch.nonzero(held < 0)
    if len(wrong):
        raise InputError(f"std must be at least 0; at position {int(wrong[0])} is {float(held[int(wrong[0])])}")
    return held


def finite(value: float, name: str) -> float:
    """A finite number.

    Raises:
        InputError: anything else.
    """
    held = _number(value)
    if not math.isfinite(held):
        raise InputError(f"{name} must be a finite number, not {shown(value)}")
    return held


def positive(value: float, name: str) -> float:
    """A finite number above 0.

    Raises:
        InputError: anything else.
    """
    held = _number(value)
    if not 0 < held < math.inf:
        raise InputError(f"{name} must be a finite number above 0, not {shown(value)}")
    return held


def at_least(value: float, least: float, name: str) -> float:
    """A finite number that is not below `least`.

    Raises:
        InputError: anything else.
    """
    held = _number(value)
    if not least <= held < math.inf:
        raise InputError(f"{name} must be a finite number of at least {least:g}, not {shown(value)}")
    return held


def whole(value: int, least: int, name: str, most: int = LARGEST_INTEGER) -> int:
    """A whole number from `least` to `most`, by default the largest that a tensor holds.

    Raises:
        InputError: anything else.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not least <= value <= most:
        has_no_end = most == LARGEST_INTEGER and not (is_whole and value > most)
        bounds = f"of at least {least}" if has_no_end else f"from {least} to {most}"
        raise InputError(f"{name} must be a whole number {bounds}, not {shown(value)}")
    return value


def _number(value: float) -> float:
    """NaN for what is none, and for a whole number that no tensor is multiplied by."""
    if isinstance(value, bool | str | bytes) or (isinstance(value, int) and abs(value) > LARGEST_INTEGER):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # text; a tensor of several
        return math.nan
