"""Rewards by forward passes, and the least that their variances are."""

import pytest
import torch
from tiny import ARCHITECTURES, tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.score.means import SURE_OF_A_FLOOR, bounded_rewards, rewards_of


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
    rewards = rewards_of(passes, rows)
    lengths = [len(row.input_ids) for row in rows]
    assert sum(seen) < sum(lengths[:30]) / 4
    torch.testing.assert_close(rewards[:30], rewards[30:], rtol=0, atol=0)
    torch.testing.assert_close(rm.score([prompt] * 60, responses * 2).mean, rewards, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("least_saved", [0, 512], ids=["after a shared beginning", "alone"])
def test_a_row_whose_reward_is_nan_has_its_own_number_also_after_its_equals(least_saved, monkeypatch):
    monkeypatch.setattr("bayesrm_fast.model.shared_beginnings.LEAST_SAVED", least_saved)
    rm = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))
    rm.fit(tiny_pairs(), rank=4, prior_precision=1.0)
    rows = rm.tokenize(["a"] * 4, ["able", "able", "art", "about"])
    with torch.no_grad():
        rm.model.get_input_embeddings().weight[rm.tokenizer("art").input_ids[1]] = float("nan")
    rm.posterior = rm.posterior  # of the model as it is now
    for posterior in (None, rm.fitted):
        with pytest.raises(InputError, match=r"^row 3: .*NaN"):
            bounded_rewards(rm.passes(), rows, posterior)


def test_progress_counts_distinct_rows_alone_and_in_groups():
    rm = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"), max_batch_tokens=600)
    rm.fit(tiny_pairs(), rank=4, prior_precision=1.0)
    prompts, responses = [words(40, 1)] * 40 + [words(3, 2)], [*[words(4, i) for i in range(20)] * 2, "art"]
    rows = rm.tokenize(prompts, responses)
    total = len({tuple(row.input_ids) for row in rows})
    told = []
    rewards_of(rm.passes(), rows, lambda *at: told.append(at))
    assert told[-1] == (total, total)
    assert {of for _, of in told} == {total}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) > 1


def bounded(rm, rows):
    return bounded_rewards(rm.passes(), rows, rm.fitted)


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


def test_without_a_posterior_nothing_is_known_of_the_variances():
    rm = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama")).fit(tiny_pairs(), rank=4)
    rows = rm.tokenize(["a"] * 3, ["able", "about", "able"])
    rewards, floors = bounded_rewards(rm.passes(), rows, None)
    assert floors.tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(rewards, rewards_of(rm.passes(), rows))


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_where_only_the_last_layer_is_adapted_its_part_is_the_variance(architecture):
    model = tiny_adapter(architecture, layers_to_transform=[1])
    rm = BayesianRewardModel(model, tiny_tokenizer(architecture)).fit(tiny_pairs(), rank=4, prior_precision=1.0)
    rows = rm.tokenize([words(5, i) for i in range(20)], [words(1 + i, 50 + i) for i in range(20)])
    torch.testing.assert_close(bounded(rm, rows)[1], SURE_OF_A_FLOOR * rm.score_tokenized(rows).variance)
