"""Which parts run next."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayesrm_fast.serve.batching import MOST_PASSED_OVER, WINDOW, next_batch
from bayesrm_fast.serve.work import Part
from bayesrm_fast.text.examples import TokenizedRow

BUDGET = 100


@dataclass(eq=False)
class Waiting:
    part: Part
    key: str = "score"
    shares_beginnings: bool = False
    passed_over: int = 0
    came: int = 0

    @property
    def tokens(self):
        return sum(row.length for row in self.part.rows)


def waiting(*lengths, **options):
    return Waiting(Part([TokenizedRow([1] * length, None, False) for length in lengths]), **options)


def chosen(window):
    return next_batch(window, BUDGET, 0, shares=True)


def padded(window, batch):
    rows = [row.length for i in batch for row in window[i].part.rows]
    return len(rows) * max(rows)


parts = st.builds(
    lambda lengths, key, passed_over: waiting(*lengths, key=key, passed_over=passed_over),
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
    st.sampled_from(["score", "rewards"]),
    st.integers(0, 2 * MOST_PASSED_OVER),
)


@given(st.lists(parts, min_size=1, max_size=40))
def test_a_batch_is_of_one_kind_within_the_budget_and_in_order(window):
    batch = chosen(window)
    assert batch == sorted(set(batch))
    assert len({window[i].key for i in batch}) == 1
    assert len(batch) == 1 or padded(window, batch) <= BUDGET
    if window[0].passed_over >= MOST_PASSED_OVER:
        assert batch[0] == 0


def test_a_batch_that_is_well_filled_goes_before_an_older_one_that_is_not():
    window = [waiting(20)] + [waiting(10) for _ in range(10)]
    assert chosen(window) == list(range(1, 11))
    window[0].passed_over = MOST_PASSED_OVER
    assert 0 in chosen(window)


def test_what_is_larger_than_the_budget_runs_by_itself():
    assert chosen([waiting(3), waiting(*[80] * 5)]) == [1]


def test_rows_of_one_prompt_that_can_share_run_together_whatever_their_lengths():
    def of(prompt, length):
        row = TokenizedRow([prompt] * 200 + [3 + length] * length, None, False)
        return Waiting(Part([row]), key="rewards", shares_beginnings=True)

    window = [of(1, 5), of(2, 5), of(1, 100), of(2, 3), of(1, 20), of(1, 60)]
    assert next_batch(window, BUDGET, 0, shares=True) == [0, 2, 4, 5]
    assert next_batch(window, BUDGET, 0, shares=False) != [0, 2, 4, 5]


def served(stream, is_odd):
    """Batches run until the odd one out runs, where for each that runs as many tokens of the stream come in."""
    queue, batches, random_lengths = [waiting(is_odd)], 0, stream
    while True:
        while sum(one.tokens for one in queue) < 3 * WINDOW * BUDGET:
            queue.append(waiting(next(random_lengths)))
        held, window = 0, []
        for one in queue:
            window.append(one)
            held += one.tokens
            if held >= WINDOW * BUDGET:
                break
        batch = chosen(window)
        batches += 1
        if 0 in batch and queue[0].tokens == is_odd:
            return batches
        for i in reversed(batch):
            del queue[i]
        for one in window:
            one.passed_over += 1


@pytest.mark.parametrize(("odd", "others"), [(90, (1, 5)), (1, (45, 50)), (60, (20, 25)), (3, (8, 50))])
def test_nothing_starves_in_an_endless_stream_of_another_length(odd, others):
    lot = random.Random(0)
    assert served(iter(lambda: lot.randint(*others), None), odd) <= MOST_PASSED_OVER + 1
