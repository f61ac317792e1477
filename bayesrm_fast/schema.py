"""JSON as a file holds it, read strictly, and checked against the fields of a dataclass."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from bayesrm_fast.errors import InputError, shown

LARGEST_INTEGER = 2**63 - 1

T = TypeVar("T")


def parsed(text: str, where: str) -> Any:
    """A JSON text, with each name once and every number finite.

    Raises:
        InputError: it is not; `where` names the text.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        twice = next((name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i])), None)
        if twice is not None and len(found) < len(pairs):
            raise ValueError(f"{shown(twice)} stands there twice")
        return found

    def refused(number: str) -> Any:
        raise ValueError(f"{number} is no number of JSON")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=refused)
    except RecursionError as error:
        raise InputError(f"{where} is not valid JSON: it is nested too deeply") from error
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: {error}") from error


def typed(kind: Any, value: Any, where: str) -> Any:
    """A value of parsed JSON as a value of a type.

    Args:
        kind: a dataclass, whose fields are all there and no others; `int`, `float` (finite; a whole number will do),
            `bool`, `str`, `None`; a list, tuple, sequence, mapping from `str`, `Literal` or union of these.
        value: of `parsed`.
        where: what an error calls it.

    Raises:
        InputError: it is of another type, or the dataclass itself refuses it.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _of_union(arguments, value, where)
    if origin is typing.Literal:
        return _checked(value, type(value) is str and value in arguments, where, f"one of {', '.join(arguments)}")
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _of_dataclass(kind, value, where)
    if origin is dict:
        _checked(value, isinstance(value, dict), where, "an object")
        return {name: typed(arguments[1], held, f"{where}.{name}") for name, held in value.items()}
    if origin is tuple:
        _checked(value, isinstance(value, list) and len(value) == len(arguments), where, f"{len(arguments)} values")
        return tuple(typed(one, held, where) for one, held in zip(arguments, value, strict=True))
    if origin is not None:
        _checked(value, isinstance(value, list), where, "a list")
        return [typed(arguments[0], held, f"{where}[{i}]") for i, held in enumerate(value)]
    return _SCALARS[kind](value, where)


def _of_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    left = [kind for kind in kinds if kind is not types.NoneType]
    fitting = [kind for kind in left if (kind is str) == isinstance(value, str)] or left
    return typed(fitting[0], value, where)


def _of_dataclass(kind: Callable[..., T], value: Any, where: str) -> T:
    _checked(value, isinstance(value, dict), where, "an object")
    hints = typing.get_type_hints(kind)
    absent = [name for name in hints if name not in value]
    unknown = [name for name in value if name not in hints]
    if absent or unknown:
        raise InputError(f"{where} {'lacks' if absent else 'has an unknown field,'} {shown((absent or unknown)[0])}")
    fields = {name: typed(hint, value[name], f"{where}: {name}") for name, hint in hints.items()}
    try:
        return kind(**fields)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _checked(value: T, is_right: bool, where: str, expected: str) -> T:
    if not is_right:
        raise InputError(f"{where} must be {expected}, not {shown(value)}")
    return value


def _float(value: Any, where: str) -> float:
    is_number = type(value) is float or (type(value) is int and abs(value) <= LARGEST_INTEGER)
    return float(_checked(value, is_number and math.isfinite(value), where, "a finite number"))


_SCALARS: dict[Any, Callable[[Any, str], Any]] = {
    bool: lambda value, where: _checked(value, type(value) is bool, where, "true or false"),
    int: lambda value, where: _checked(
        value, type(value) is int and abs(value) <= LARGEST_INTEGER, where, "a whole number"
    ),
    float: _float,
    str: lambda value, where: _checked(value, type(value) is str, where, "a text"),
}
