"""What a client reads of the server's answers, and refuses where they are none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.schema import typed
from bayesrm_fast.score.variances import RewardScores
from bayesrm_fast.select.choice import BestOfN
from bayesrm_fast.text.texts import Text

OF_ANOTHER = "; is this a server of bayesrm?"

Json = dict[str, Any]


class ServerError(Exception):
    """The server has not answered in time, or not as one should."""


@dataclass(frozen=True)
class _Mean:
    """What is read of a response's entry in an answer."""

    mean: float
    tokens: int
    truncated: bool
    baseline: float | None


@dataclass(frozen=True)
class _Reward(_Mean):
    """The same with a std."""

    std: float


@dataclass(frozen=True)
class _Candidate(_Mean):
    """The same of a choice, which may have had no need of a std."""

    std: float | None
    score: float | None


@dataclass(frozen=True)
class _Model:
    id: str


T = TypeVar("T", bound=_Mean | _Model)


def names_of(answer: Json) -> list[str]:
    """Names of the models that an answer lists; raises ServerError where it lists none."""
    return [one.id for one in _entries(_Model, answer, "data")]


def means_of(places: Sequence[Sequence[int]], answers: Sequence[Json]) -> Tensor:  # shape: (N,)
    """Means in the order of the rows.

    Args:
        places: of each answer's entries among the rows.
        answers: as many.

    Raises:
        ServerError: an answer that is not what was asked for, or has a NaN.
    """
    return _column([row.mean for row in _rows(_Mean, places, answers)])


def scores_of(places: Sequence[Sequence[int]], answers: Sequence[Json]) -> RewardScores:
    """Scores in the order of the rows; arguments and errors as of `means_of`."""
    rows = _rows(_Reward, places, answers)
    std = _column([row.std for row in rows])
    baseline = None if rows[0].baseline is None else _column([row.baseline for row in rows])
    return RewardScores(_column([row.mean for row in rows]), std.square(), *_truncated_and_tokens(rows), baseline)


def best_of(answer: Json, responses: Sequence[Text]) -> BestOfN:
    """A choice among these responses; raises ServerError as `means_of` does, and for a choice of none of them."""
    rows, index = _entries(_Candidate, answer, "candidates", len(responses)), answer.get("index")
    if type(index) is not int or not 0 <= index < len(rows):
        raise ServerError(f"the answer's index must be that of a response{OF_ANOTHER}")
    mean, std, score = (_column([getattr(row, name) for row in rows]) for name in ("mean", "std", "score"))
    computed = sum(row.std is not None for row in rows)
    told = _truncated_and_tokens(rows)
    return BestOfN(index, responses[index], score, mean, std.square(), *told, computed, rows[0].baseline)


def _rows(kind: type[T], places: Sequence[Sequence[int]], answers: Sequence[Json]) -> list[T]:
    """Entries of all answers, in the order of the rows."""
    found: dict[int, T] = {}
    for own, answer in zip(places, answers, strict=True):
        found.update(zip(own, _entries(kind, answer, "rewards", len(own)), strict=True))
    return [found[i] for i in range(len(found))]


def _entries(kind: type[T], answer: Json, name: str, count: int | None = None) -> list[T]:
    listed = answer.get(name)
    if not isinstance(listed, list) or count not in (None, len(listed)):
        expected = "a list" if count is None else f"a list of {count}"
        raise ServerError(f"the answer's {name} must be {expected}{OF_ANOTHER}")
    names = {one.name for one in fields(kind)}
    try:
        return [
            typed(kind, {key: held for key, held in dict(one).items() if key in names}, f"{name}[{i}]")
            for i, one in enumerate(listed)
        ]
    except (InputError, TypeError, ValueError) as error:
        raise ServerError(f"the answer's {error}{OF_ANOTHER}") from error


def _truncated_and_tokens(rows: Sequence[_Mean]) -> tuple[Tensor, Tensor]:  # shapes: (N,), (N,)
    return (
        torch.tensor([row.truncated for row in rows], dtype=torch.bool, device="cpu"),
        torch.tensor([row.tokens for row in rows], dtype=torch.int64, device="cpu"),
    )


def _column(values: Sequence[float | None]) -> Tensor:  # shape: (N,)
    return torch.tensor([math.nan if one is None else one for one in values], dtype=torch.float64, device="cpu")
