"""What a pass runs over: rows of token ids, each by itself or two as a pair, and the steps of a row."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
    def label_sign(self) -> float:
        """What its scalar is multiplied by, so that `log σ` of the product is the log-likelihood of its label."""
        return 1.0

    @property
    def group(self) -> str | None:
        """Of examples that are held out together, such as the steps of a response; None for one by itself."""
        return None

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.input_ids) for row in self.rows)

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def reads(self) -> int:
        """Tokens at which each row is read."""
        return len(self.rows[0].read_at or (0,))

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
        read_at: the tokens at which a token classifier is read; None for a model that finds its token itself.
    """

    signs = (1.0,)

    input_ids: list[int]
    token_type_ids: list[int] | None
    truncated: bool
    where: str = field(default="a row", compare=False)
    read_at: tuple[int, ...] | None = None

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
        read_at = None if self.read_at is None else tuple(at - start for at in self.read_at)
        return TokenizedRow(self.input_ids[start:stop], cut, self.truncated, self.where, read_at)


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


@dataclass(frozen=True)
class TokenizedStep(Example):
    """A labelled step of a response; its log-odds of being correct are what is scored.

    Attributes:
        row: read at the step's end.
        is_correct: its label.
        response: what an error calls the response.
    """

    signs = (1.0,)

    row: TokenizedRow
    is_correct: bool
    response: str

    @property
    def rows(self) -> tuple[TokenizedRow, ...]:
        """The one row."""
        return (self.row,)

    @property
    def where(self) -> str:
        """What an error calls it."""
        return self.row.where

    @property
    def label_sign(self) -> float:
        """1 for a correct step, −1 for another: `log σ(−z) = log(1 − σ(z))`."""
        return 1.0 if self.is_correct else -1.0

    @property
    def group(self) -> str | None:
        """Its response."""
        return self.response


LabelledExample = TokenizedPair | TokenizedStep
"""What a posterior is fitted on."""


@dataclass(frozen=True)
class SegmentedRow:
    """A prompt and a response in S segments, for a token classifier.

    Attributes:
        row: all of it.
        ends: the token at which each segment is read, ascending.
        labels: whether each segment is correct; None where nobody said.
    """

    row: TokenizedRow
    ends: list[int]
    labels: list[bool] | None = None

    def whole(self, is_causal: bool) -> TokenizedRow:
        """One row, read at the ends of all segments; where attention is causal, it ends with the last of them."""
        row = self.row.part(0, self.ends[-1] + 1) if is_causal else self.row
        return replace(row, read_at=tuple(self.ends))

    def reads(self, is_causal: bool) -> list[TokenizedRow]:
        """A row for each segment, read at its end; where attention is causal, it ends there too."""
        return [
            replace(
                self.row.part(0, end + 1) if is_causal else self.row,
                where=f"{self.row.where}: segment {number}",
                read_at=(end,),
            )
            for number, end in enumerate(self.ends, start=1)
        ]

    def steps(self, is_causal: bool) -> list[TokenizedStep]:
        """Its segments with their labels, which must be there."""
        assert self.labels is not None
        where = self.row.where
        return [TokenizedStep(*one, where) for one in zip(self.reads(is_causal), self.labels, strict=True)]


def group_numbers(examples: Sequence["LabelledExample"]) -> list[int]:
    """A number for each, from 0 on in the order of their first ones; the same for the steps of one response."""
    numbers: dict[str | int, int] = {}
    return [
        numbers.setdefault(i if example.group is None else example.group, len(numbers))
        for i, example in enumerate(examples)
    ]


def distinct(examples: Sequence[Example]) -> tuple[list[int], list[int]]:
    """Positions of the first of equal examples, and for every example where in that list its equal is."""
    first: dict[tuple[tuple[tuple[int, ...] | None, ...], ...], int] = {}
    positions: list[int] = []
    where: list[int] = []
    for position, example in enumerate(examples):
        key = tuple((tuple(row.input_ids), tuple(row.token_type_ids or ()), row.read_at) for row in example.rows)
        if key not in first:
            first[key] = len(positions)
            positions.append(position)
        where.append(first[key])
    return positions, where
