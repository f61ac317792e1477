"""Batches within a budget, rows in tensors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bayesrm_fast import InputError
from bayesrm_fast.text.batches import Collator, plan_batches
from bayesrm_fast.text.examples import TokenizedPair, TokenizedRow

CPU = torch.device("cpu")


def row(*ids, types=None):
    return TokenizedRow(list(ids), types, False)


@given(
    lengths=st.lists(st.lists(st.integers(1, 30), min_size=2, max_size=2), min_size=1, max_size=30),
    budget=st.integers(1, 200),
)
def test_every_segment_once_and_no_batch_beyond_the_budget(lengths, budget):
    examples = [TokenizedPair(*(row(*[1] * n) for n in pair)) for pair in lengths]
    plan = plan_batches(examples, budget)
    assert sorted(i for batch in plan for i in batch) == list(range(len(examples)))
    for batch in plan:
        tokens = max(max(lengths[i]) for i in batch) * 2 * len(batch)
        assert tokens <= budget or len(batch) == 1


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.sampled_from([512, 4096]))
def test_little_of_a_batch_is_padding(lengths, budget):
    for batch in plan_batches([row(*[1] * n) for n in lengths], budget):
        tokens = lengths[batch[0]] * len(batch)
        assert tokens <= budget / 8 or len(batch) == 1 or sum(lengths[i] for i in batch) >= 63 / 64 * tokens


def test_tokens_before_a_row_take_room_and_no_work():
    examples = [row(1, 2)] * 10
    assert len(plan_batches(examples, 20)) == 1
    assert [len(batch) for batch in plan_batches(examples, 20, before=3)] == [4, 4, 2]


def test_rows_are_padded_on_the_right():
    batch = Collator(3, 10, CPU)([row(5, 6, 7, types=[0, 0, 1]), row(8, types=[0])])
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.token_type_ids.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert (batch.pad_token_id, batch.signs) == (3, (1.0,))


def test_without_a_padding_token_an_id_that_no_row_holds_pads():
    batch = Collator(None, 10, CPU)([row(0, 1, 2), row(4)])
    assert batch.pad_token_id == 3
    with pytest.raises(InputError, match="padding token"):
        Collator(None, 4, CPU)([row(0, 1, 2), row(3)])
