"""Which of the parts that wait run next."""

import itertools
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bayesrm_fast.model.shared_beginnings import shared_beginnings
from bayesrm_fast.serve.work import Part
from bayesrm_fast.text.batches import plan_batches
from bayesrm_fast.text.examples import TokenizedRow

WINDOW = 8
"""Batches' tokens that are sorted by length together."""

MOST_PASSED_OVER = 8
"""Batches that may run before a part of the window that came before theirs."""

WELL_FILLED = 1 / 2
"""Of the token budget: a batch that need not wait for more parts of like length."""


class Waiting(Protocol):
    """A part that waits.

    Attributes:
        part: itself.
        key: equal for parts that may share a call.
        shares_beginnings: whether its rows may share their beginning with those of an equal prompt.
        passed_over: batches that ran since it came into the window.
    """

    part: Part
    passed_over: int

    @property
    def key(self) -> Hashable: ...  # noqa: D102
    @property
    def shares_beginnings(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Together:
    """Parts that run in one call in any case.

    Attributes:
        positions: in the window, in its order.
        rows: of all of them.
    """

    positions: list[int]
    rows: list[TokenizedRow]

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(row.length for row in self.rows)

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(row.length for row in self.rows)


def next_batch(window: Sequence[Waiting], max_tokens: int, pad_token_id: int | None, shares: bool) -> list[int]:
    """The positions of the parts to run next.

    The window is divided into batches of parts of like length. The first one that is well filled is taken, first by the
    part in it that came first; the oldest part's batch where none is, and where that part was passed over too often.

    Args:
        window: at least one part, in the order of their coming.
        max_tokens: of a batch, padding included. What is larger by itself is a batch.
        pad_token_id: of the model.
        shares: whether the model can share beginnings.
    """
    batches = sorted((sorted(batch) for batch in _plan(window, max_tokens, pad_token_id, shares)), key=lambda b: b[0])
    if window[0].passed_over < MOST_PASSED_OVER:
        for batch in batches:
            if sum(len(row.input_ids) for i in batch for row in window[i].part.rows) >= WELL_FILLED * max_tokens:
                return batch
    return batches[0]


def _plan(window: Sequence[Waiting], max_tokens: int, pad_token_id: int | None, shares: bool) -> Iterable[list[int]]:
    by_key: dict[Hashable, list[int]] = {}
    for position, waiting in enumerate(window):
        by_key.setdefault(waiting.key, []).append(position)
    for own in by_key.values():
        pieces = _together(window, own, pad_token_id, shares and window[own[0]].shares_beginnings)
        for batch in plan_batches(pieces, max_tokens):
            yield list(itertools.chain.from_iterable(pieces[i].positions for i in batch))


def _together(
    window: Sequence[Waiting], positions: Sequence[int], pad_token_id: int | None, shares: bool
) -> list[Together]:
    """Parts that share a beginning, where that is worth it; every other part by itself."""
    grouped: list[list[int]] = []
    if shares:
        numbers: dict[str | int, int] = {}
        prompts = [i if (prompt := window[i].part.prompt) is None else prompt for i in positions]
        owners = [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]
        rows = [window[i].part.rows[0] for i in positions]
        grouped = [[positions[i] for i in one.rows] for one in shared_beginnings(rows, owners, pad_token_id)]
    together = {i for own in grouped for i in own}
    alone = [[i] for i in positions if i not in together]
    return [Together(own, [row for i in own for row in window[i].part.rows]) for own in grouped + alone]
