"""Which rows share the beginning that they have in common, by counted tokens."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model.shared_beginnings import LEAST_SAVED, Group, scalars_after_beginnings, shared_beginnings
from bayesrm_fast.text.examples import TokenizedRow


def row(*ids):
    return TokenizedRow(list(ids), None, False)


def rows_after(prompt, count, length=4):
    return [row(*prompt, *[10 + i] * length) for i in range(count)]


def test_a_long_prompt_is_shared_and_a_short_one_is_not():
    long = list(range(1, LEAST_SAVED))
    groups = shared_beginnings([*rows_after(long, 3), *rows_after([7, 2, 3], 40)], 0)
    assert [(group.rows, group.shared) for group in groups] == [([0, 1, 2], len(long))]


def test_what_sharing_saves_is_counted_against_all_tokens():
    prompt = [1] * 20
    assert shared_beginnings(rows_after(prompt, 50, 30), 0)
    assert not shared_beginnings(rows_after(prompt, 50, 300), 0)


def test_a_row_keeps_the_token_at_which_it_is_scored():
    prompt = [1] * LEAST_SAVED
    whole, longer, ended = row(*prompt), row(*prompt, 7), row(*prompt, 0, 0)
    (group,) = shared_beginnings([whole, longer, ended], 0)
    assert group.shared == len(prompt) - 1


def test_each_prompt_has_a_group_unless_more_is_saved_by_what_all_begin_with():
    system, first, second = list(range(1, 400)), [5] * 600, [6] * 600
    rows = [*rows_after(system + first, 4), *rows_after(system + second, 4), row(*system, 9), row(8)]
    groups = shared_beginnings(rows, 0)
    assert groups == [Group([0, 1, 2, 3], 999), Group([4, 5, 6, 7], 999)]
    apart = [row(*system, i, *[i] * 30) for i in range(500, 510)]
    (together,) = shared_beginnings([*rows[3:5], *apart], 0)
    assert together == Group(list(range(12)), len(system))


def test_rows_of_equal_tokens_and_other_types_do_not_share_them():
    ids = list(range(1, LEAST_SAVED + 9))
    first, second = (TokenizedRow([*ids, 7], [0] * 20 + [kind] * (len(ids) - 19), False) for kind in (0, 1))
    assert not shared_beginnings([first, second], 0)
    assert shared_beginnings([first, first, second], 0) == [Group([0, 1], len(ids))]


def test_rows_that_are_read_at_other_numbers_of_tokens_do_not_share():
    def read(length, *at):
        return replace(row(*[1] * LEAST_SAVED, *[2] * length), read_at=tuple(LEAST_SAVED + i for i in at))

    rows = [read(4, 1, 3), read(6, 2), read(4, 2, 3), read(4, 3), read(5, 1, 2, 4)]
    groups = shared_beginnings(rows, 0)
    assert [(group.rows, group.shared) for group in groups] == [([1, 3], LEAST_SAVED + 2), ([0, 2], LEAST_SAVED + 1)]


def test_many_rows_of_which_each_begins_with_another_one_are_grouped_without_a_deep_recursion():
    rows = [row(*range(1, 600), *range(600, 600 + length)) for length in range(1, 3000, 2)]
    (group,) = shared_beginnings(rows, 0)
    first = group.rows[0]
    assert group.rows == list(range(first, len(rows)))
    saved = [(len(rows) - 1 - i) * (len(one.input_ids) - 1) for i, one in enumerate(rows)]
    assert saved[first] == max(saved)


def test_rows_of_one_prompt_need_not_stand_together():
    long = list(range(1, LEAST_SAVED))
    first, second, third = rows_after(long, 3)
    assert shared_beginnings([first, second, row(5), third], 0) == [Group([0, 1, 3], len(long))]


@pytest.fixture(params=[60, 4096], ids=["small batches", "one batch"])
def rm(request):
    model = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"), max_batch_tokens=request.param)
    return model.fit(tiny_pairs(), rank=4, prior_precision=1.0)


def test_rewards_after_a_shared_beginning_are_those_of_the_whole_rows(rm):
    rows = rm.tokenize([words(12, 1)] * 5 + [words(9, 2)] * 3, [words(1 + 5 * i % 8, 50 + i) for i in range(8)])
    expected = rm.score_tokenized(rows).mean
    found = torch.full((8,), torch.nan)
    for positions, scalars in scalars_after_beginnings(
        rm.passes(), rows, [Group([0, 1, 2, 3, 4], 13), Group([5, 7], 6)]
    ):
        found[positions] = scalars.squeeze(1)
    seen = [0, 1, 2, 3, 4, 5, 7]
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-5, atol=1e-5)
    assert found[6].isnan()


def test_a_row_whose_reward_is_nan_after_a_shared_beginning_has_its_own_number(rm):
    prompt = words(12, 1).replace("art", "a")
    rows = rm.tokenize([prompt] * 4, ["able", "about", "above art", "act"])
    passes = rm.passes()
    with torch.no_grad():
        rm.model.get_input_embeddings().weight[rm.tokenizer("art").input_ids[1]] = float("nan")
    with pytest.raises(InputError, match=r"row 3: .*NaN"):
        list(scalars_after_beginnings(passes, rows, [Group([0, 1, 2, 3], 12)]))
