"""Which of the parts that wait run next."""

from collections.abc import Hashable, Sequence
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
        shares_beginnings: whether its rows may share their beginning with those of others.
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
        length: tokens of the longest row.
        tokens: of all rows.
    """

    positions: list[int]
    rows: list[TokenizedRow]
    length: int
    tokens: int


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
    by_key: dict[Hashable, list[int]] = {}
    for position, waiting in enumerate(window):
        by_key.setdefault(waiting.key, []).append(position)
    batches: list[tuple[list[int], int]] = []
    for own in by_key.values():
        pieces = _together(window, own, pad_token_id, shares and window[own[0]].shares_beginnings)
        for plan in plan_batches(pieces, max_tokens):
            positions = sorted(i for piece in plan for i in pieces[piece].positions)
            batches.append((positions, sum(pieces[piece].tokens for piece in plan)))
    batches.sort()
    if window[0].passed_over < MOST_PASSED_OVER:
        for positions, tokens in batches:
            if tokens >= WELL_FILLED * max_tokens:
                return positions
    return batches[0][0]


def _together(
    window: Sequence[Waiting], positions: Sequence[int], pad_token_id: int | None, shares: bool
) -> list[Together]:
    """Parts that share a beginning, where that is worth it; every other part by itself."""
    grouped: list[list[int]] = []
    if shares:
        rows = [window[i].part.rows[0] for i in positions]
        grouped = [[positions[i] for i in one.rows] for one in shared_beginnings(rows, pad_token_id)]
    in_groups = {i for own in grouped for i in own}
    found = []
    for own in [*grouped, *([i] for i in positions if i not in in_groups)]:
        rows = [row for i in own for row in window[i].part.rows]
        lengths = [len(row.input_ids) for row in rows]
        found.append(Together(own, rows, max(lengths), sum(lengths)))
    return found
