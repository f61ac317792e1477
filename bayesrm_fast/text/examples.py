"""What a pass runs over: rows of token ids, each by itself or two as a pair."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from bayesrm_fast.errors import InputError


class Example(ABC):
    """Rows whose weighted sum of rewards is one number: a reward, or a difference of two.

    Attributes:
        signs: weight of each row's reward in the sum.
    """

    signs: ClassVar[tuple[float, ...]]

    @property
    @abstractmethod
    def rows(self) -> tuple["TokenizedRow", ...]:
        """As many as there are signs."""

    @property
    @abstractmethod
    def where(self) -> str:
        """What an error calls it."""

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.input_ids) for row in self.rows)

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def is_truncated(self) -> bool:
        """Whether `max_length` cut any row."""
        return any(row.truncated for row in self.rows)


@dataclass(frozen=True)
class TokenizedRow(Example):
    """One row for the model; its reward is what is scored. Raises InputError where there are no tokens.

    Attributes:
        input_ids: of every token, special ones included.
        token_type_ids: None for models that have none.
        truncated: whether `max_length` cut something.
        where: what an error calls it; rows that differ in nothing else are equal.
    """

    signs = (1.0,)

    input_ids: list[int]
    token_type_ids: list[int] | None
    truncated: bool
    where: str = field(default="a row", compare=False)

    def __post_init__(self) -> None:
        if not self.input_ids:
            raise InputError(f"{self.where} has no tokens, and so no reward")

    @property
    def rows(self) -> tuple["TokenizedRow", ...]:
        """Itself."""
        return (self,)

    def part(self, start: int, stop: int | None) -> "TokenizedRow":
        """Its tokens from `start` to before `stop`."""
        types = self.token_type_ids
        cut = None if types is None else types[start:stop]
        return TokenizedRow(self.input_ids[start:stop], cut, self.truncated, self.where)


@dataclass(frozen=True)
class TokenizedPair(Example):
    """A preference pair; the difference of its rewards is what is scored."""

    signs = (1.0, -1.0)

    chosen: TokenizedRow
    rejected: TokenizedRow
    where: str = field(default="a pair", compare=False)

    @property
    def rows(self) -> tuple[TokenizedRow, ...]:
        """The chosen one first."""
        return (self.chosen, self.rejected)


def distinct(examples: Sequence[Example]) -> tuple[list[int], list[int]]:
    """Positions of the first of equal examples, and for every example where in that list its equal is."""
    first: dict[tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], int] = {}
    positions: list[int] = []
    where: list[int] = []
    for position, example in enumerate(examples):
        key = tuple((tuple(row.input_ids), tuple(row.token_type_ids or ())) for row in example.rows)
        if key not in first:
            first[key] = len(positions)
            positions.append(position)
        where.append(first[key])
    return positions, where
