"""Forward passes: what is shared, and what is computed once."""

import pytest
import torch
from tiny import ARCHITECTURES, tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.model.shared_beginnings import LEAST_SAVED, shared_beginnings
from bayesrm_fast.score.means import SURE_OF_A_FLOOR, bounded_rewards, rewards_of
from bayesrm_fast.text.examples import TokenizedRow, distinct


def row(*ids):
    return TokenizedRow(list(ids), None, False)


def rows_after(prompt, count, length=4):
    return [row(*prompt, *[10 + i] * length) for i in range(count)]


def test_a_long_prompt_is_shared_and_a_short_one_is_not():
    long = list(range(1, LEAST_SAVED))
    groups = shared_beginnings([*rows_after(long, 3), *rows_after([1, 2, 3], 40)], [0] * 3 + [1] * 40, 0)
    assert [(group.rows, group.shared) for group in groups] == [([0, 1, 2], len(long))]


def test_what_sharing_saves_is_counted_against_all_tokens():
    prompt = [1] * 20
    assert shared_beginnings(rows_after(prompt, 50, 30), [0] * 50, 0)
    assert not shared_beginnings(rows_after(prompt, 50, 300), [0] * 50, 0)


def test_a_row_keeps_the_token_at_which_it_is_scored():
    prompt = [1] * LEAST_SAVED
    whole, longer, ended = row(*prompt), row(*prompt, 7), row(*prompt, 0, 0)
    (group,) = shared_beginnings([whole, longer, ended], [0] * 3, 0)
    assert group.shared == len(prompt) - 1


def test_rows_of_other_prompts_or_alone_are_not_shared():
    prompt = [1] * LEAST_SAVED
    assert not shared_beginnings(rows_after(prompt, 2), [0, 1], 0)


def test_equal_segments_are_found():
    assert distinct([row(1), row(2), row(1)]) == ([0, 1], [0, 1, 0])
    typed = TokenizedRow([1], [1], False)
    assert distinct([row(1), typed]) == ([0, 1], [0, 1])


def test_identical_candidates_and_a_shared_prompt_are_computed_once():
    rm = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))
    rm.fit(tiny_pairs(), rank=4, prior_precision=1.0)
    seen = []
    rm.model.get_base_model().model.embed_tokens.register_forward_hook(
        lambda m, args, out: seen.append(args[0].numel())
    )
    prompt, responses = words(40, 1), [words(4, i) for i in range(30)]
    passes = rm.passes()
    rows = rm.tokenize([prompt] * 60, responses * 2)
    seen.clear()
    rewards = rewards_of(passes, rows, [0] * 60)
    lengths = [len(row.input_ids) for row in rows]
    assert sum(seen) < sum(lengths[:30]) / 4
    torch.testing.assert_close(rewards[:30], rewards[30:], rtol=0, atol=0)
    seen.clear()
    scores = rm.score([prompt] * 60, responses * 2)
    assert sum(seen) == sum(lengths[:30])
    torch.testing.assert_close(scores.mean, rewards, rtol=1e-5, atol=1e-5)


def bounded(rm, rows):
    prompts = list(range(len(rows)))  # of prompts of their own, so that none shares its beginning
    return bounded_rewards(rm.passes(), rows, prompts, rm.fitted)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("include_head", [False, True])
def test_a_variance_is_never_below_what_its_last_layer_alone_gives(architecture, include_head):
    rm = BayesianRewardModel(tiny_adapter(architecture), tiny_tokenizer(architecture))
    rm.fit(tiny_pairs(), rank=4, prior_precision=1.0, include_head=include_head)
    rows = rm.tokenize([words(5, i) for i in range(20)], [words(1 + i, 50 + i) for i in range(20)])
    mean, floor = bounded(rm, rows)
    scores = rm.score_tokenized(rows)
    torch.testing.assert_close(mean, scores.mean, rtol=1e-5, atol=1e-5)
    assert (floor < scores.variance).all()
    assert bool((floor > 0).all()) == (rm.shortcuts.scored_token is not None)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_where_only_the_last_layer_is_adapted_its_part_is_the_variance(architecture):
    model = tiny_adapter(architecture, layers_to_transform=[1])
    rm = BayesianRewardModel(model, tiny_tokenizer(architecture)).fit(tiny_pairs(), rank=4, prior_precision=1.0)
    rows = rm.tokenize([words(5, i) for i in range(20)], [words(1 + i, 50 + i) for i in range(20)])
    torch.testing.assert_close(bounded(rm, rows)[1], SURE_OF_A_FLOOR * rm.score_tokenized(rows).variance)
