"""Which rows share a call of the model, and their order afterwards."""

from dataclasses import replace

import pytest
import torch

from bayesrm_fast import InputError
from bayesrm_fast.model.calls import by_row, calls_of, in_order, joined, loses
from bayesrm_fast.model.shortcuts import Shortcuts
from bayesrm_fast.text.batches import TokenBatch

LENGTHS = [3, 1, 5, 3, 1]
MASK = (torch.arange(5) < torch.tensor(LENGTHS)[:, None]).long()
BATCH = TokenBatch(torch.arange(25).view(5, 5) * MASK, MASK, MASK, 0, (1.0,))


@pytest.mark.parametrize(
    ("shortcuts", "rows"),
    [
        (Shortcuts(), [[0, 1, 2, 3, 4]]),
        (Shortcuts(equal_lengths=True), [[0, 3], [1, 4], [2]]),
        (Shortcuts(switches=(3,)), [[0, 1, 3, 4], [2]]),
        (Shortcuts(tokens_first=True), [[0, 1, 2, 3], [4]]),
        (Shortcuts(tokens_first=True, equal_lengths=True), [[0, 3], [1], [4], [2]]),
    ],
    ids=str,
)
def test_rows_of_a_call_and_their_order_afterwards(shortcuts, rows):
    calls = calls_of(BATCH, shortcuts)
    assert [call.rows.tolist() for call in calls] == rows
    assert [call.batch.input_ids.shape[1] for call in calls] == [max(LENGTHS[i] for i in group) for group in rows]
    scalars = in_order(calls, [call.batch.input_ids.amax(1, keepdim=True).float() for call in calls])
    assert torch.equal(scalars, BATCH.input_ids.amax(1, keepdim=True).float())


def test_rows_are_read_where_the_batch_says_in_every_call():
    read_at = torch.arange(10).view(5, 2)
    for call in calls_of(replace(BATCH, read_at=read_at), Shortcuts(equal_lengths=True)):
        assert torch.equal(call.batch.read_at, read_at[call.rows])


def test_the_tokens_at_which_rows_are_read_are_a_layout_too():
    x = torch.randn(5, 2, 3)
    assert by_row(x, BATCH) is None
    read = replace(BATCH, read_at=torch.zeros(5, 2, dtype=torch.long))
    assert torch.equal(by_row(x, read), x)
    assert by_row(x[:, :1], replace(BATCH, read_at=torch.zeros(5, 1, dtype=torch.long))).shape == (5, 3)


def test_layouts_of_a_layer_are_put_into_the_batchs():
    batch = calls_of(BATCH, Shortcuts())[0].batch
    batch = TokenBatch(batch.input_ids[:, :4], batch.attention_mask[:, :4], None, 0, (1.0,))
    x = torch.randn(5, 4, 2)
    longer = torch.cat([x, torch.zeros(5, 2, 2)], 1)
    for seen in (x, x[:, None], x.flatten(0, 1), x.transpose(0, 1), longer, longer.transpose(0, 1)):
        assert torch.equal(by_row(seen, batch), x)
        assert not loses(seen, batch)
    for seen in (x[:, 0], x[:, :1], x[:, :1].transpose(0, 1)):
        assert torch.equal(by_row(seen, batch), x[:, 0])
    assert by_row(x[:, :3], batch) is None
    assert loses(torch.cat([x, x], 1), batch)


def test_what_layers_saw_in_several_calls_is_that_of_the_batch():
    x = torch.randn(5, 5, 2) * MASK[..., None]
    calls = calls_of(BATCH, Shortcuts(equal_lengths=True))
    seen = [x[call.rows, : call.batch.input_ids.shape[1]] for call in calls]
    assert torch.equal(joined(calls, seen, BATCH, "a layer"), x)
    assert torch.equal(joined(calls, [part[:, 0] for part in seen], BATCH, "a layer"), x[:, 0])
    with pytest.raises(InputError, match=r"cannot serve a layer: it is called on \[4, 4, 2\]"):
        joined(calls, [torch.zeros(4, 4, 2), *seen[1:]], BATCH, "a layer")
