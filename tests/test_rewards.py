"""Forward passes: what is shared, and what is computed once."""

import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.rewards import LEAST_SAVED, distinct, rewards_of, shared_beginnings
from bayesrm_fast.text import TokenizedText


def row(*ids):
    return TokenizedText(list(ids), None, False)


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
    assert distinct([(row(1),), (row(2),), (row(1),)]) == ([0, 1], [0, 1, 0])
    typed = TokenizedText([1], [1], False)
    assert distinct([(row(1),), (typed,)]) == ([0, 1], [0, 1])


def test_identical_candidates_and_a_shared_prompt_are_computed_once():
    rm = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))
    rm.fit(tiny_pairs(), rank=4, prior_precision=1.0)
    seen = []
    rm.model.get_base_model().model.embed_tokens.register_forward_hook(
        lambda m, args, out: seen.append(args[0].numel())
    )
    prompt, responses = words(40, 1), [words(4, i) for i in range(30)]
    passes = rm.passes()
    rows = rm.encoder.encode([prompt] * 60, responses * 2)
    seen.clear()
    rewards = rewards_of(passes, rows, [0] * 60)
    lengths = [len(row.input_ids) for row in rows]
    assert sum(seen) < sum(lengths[:30]) / 4
    torch.testing.assert_close(rewards[:30], rewards[30:], rtol=0, atol=0)
    seen.clear()
    scores = rm.score([prompt] * 60, responses * 2)
    assert sum(seen) == sum(lengths[:30])
    torch.testing.assert_close(scores.mean, rewards, rtol=1e-5, atol=1e-5)
