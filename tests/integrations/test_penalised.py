"""Rewards less what the posterior does not know of them."""

import math

import numpy as np
import pytest
import torch
from tiny import words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.integrations.penalised import PenalisedReward, PenalisedRewards

PROMPTS = [words(3)] * 3 + [words(4, 7)] * 2
RESPONSES = [words(3 + i, 2 * i) for i in range(5)]
REFERENCES = [words(2, 11)] * 3 + [words(2, 13)] * 2


def group_stds(rm):
    """By the joint covariance of each group, which goes another way."""
    found = []
    for own in (slice(0, 3), slice(3, 5)):
        joint = rm.covariance(PROMPTS[own.start], RESPONSES[own]).covariance.double()
        centred = torch.eye(len(joint), dtype=torch.float64) - 1 / len(joint)
        found.append((centred @ joint @ centred.T).diagonal().sqrt())
    return torch.cat(found)


@pytest.mark.parametrize(("penalty", "weight"), [("std", 0.5), ("entropic", 2.0), ("none", 1.0)])
def test_the_penalty_is_of_the_difference_to_the_group_and_the_reward_is_the_models_own(rm, penalty, weight):
    found = PenalisedReward(rm, penalty, weight).of(PROMPTS, RESPONSES)
    mean, std = rm.rewards(PROMPTS, RESPONSES).double(), group_stds(rm)
    expected = {"std": weight * std, "entropic": weight / 2 * std**2, "none": 0 * std}[penalty]
    torch.testing.assert_close(found.mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.penalty, expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.rewards, found.mean - found.penalty)


def test_references_and_the_rewards_own_stds(rm):
    scorer = PenalisedReward(rm)
    own, absolute = scorer.of(PROMPTS, RESPONSES, REFERENCES), scorer.of(PROMPTS, RESPONSES, None)
    to_reference = rm.score(PROMPTS, RESPONSES, relative_to=REFERENCES).variance.double().sqrt()
    torch.testing.assert_close(own.std, to_reference, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(absolute.std, rm.score(PROMPTS, RESPONSES).variance.double().sqrt(), rtol=1e-5, atol=0)
    torch.testing.assert_close(own.mean, absolute.mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("relative_to", ["group", None])
def test_a_row_that_cannot_be_read_has_no_reward_and_the_others_have_theirs(rm, relative_to):
    broken = [*RESPONSES[:4], "\ud800"]
    with pytest.warns(UserWarning, match=r"no reward for row 5"):
        found = PenalisedReward(rm).of(PROMPTS, broken, relative_to)
    kept = 3 if relative_to == "group" else 4  # one response alone is no group
    expected = PenalisedReward(rm).of(PROMPTS[:kept], RESPONSES[:kept], relative_to)
    torch.testing.assert_close(found.rewards[:kept], expected.rewards, rtol=1e-4, atol=1e-6)
    assert found.as_list()[kept:] == [None] * (5 - kept)
    assert all(math.isfinite(value) for value in found.metrics().values())


def test_a_response_without_others_of_its_group_is_refused_by_its_row(rm):
    with pytest.raises(InputError, match=r"row 4: the only response to its prompt here.*give relative_to references"):
        PenalisedReward(rm).of(PROMPTS[:4], RESPONSES[:4])


def test_a_prompt_that_one_response_repeats_and_another_does_not_is_no_group(rm):
    """`score` reads two prompts there, and a difference to nothing but itself would be no penalty at all."""
    answer = [{"role": "assistant", "content": RESPONSES[0]}]
    asked = [{"role": "user", "content": PROMPTS[0]}]
    with pytest.raises(InputError, match="row 1, row 2: the only response to its prompt here"):
        PenalisedReward(rm).of([PROMPTS[0]] * 2, [answer, asked + answer])


def test_prompts_that_differ_in_empty_columns_are_one_group(rm):
    prompts = [[{"role": "user", "content": PROMPTS[0]} | more] for more in ({}, {"tool_calls": None})]
    assert (PenalisedReward(rm).of(prompts, RESPONSES[:2]).std > 0).all()


def test_a_reference_is_written_as_the_responses_are(rm):
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    responses, references = ([[{"role": "assistant", "content": one}] for one in of] for of in (RESPONSES, REFERENCES))
    scorer = PenalisedReward(rm)
    assert scorer.of(prompts, responses, REFERENCES).as_list() == scorer.of(prompts, responses, references).as_list()


def test_what_concerns_all_rows_is_an_error(rm):
    with pytest.raises(InputError, match="response"):
        PenalisedReward(rm).of(PROMPTS[:2], ["\ud800", None])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((PROMPTS, RESPONSES[:2]), "there are 2 responses but 5 prompts"),
        ((PROMPTS[:2], RESPONSES), "there are 5 responses but 2 prompts"),
        ((PROMPTS, RESPONSES, REFERENCES[:2]), "there are 5 responses but 2 references"),
        ((PROMPTS, RESPONSES, "about"), "references must be a list, not 'about'"),
        ((words(5), RESPONSES), "prompts must be a list"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(rm, given, message):
    with pytest.raises(InputError, match=message):
        PenalisedReward(rm).of(*given)


def test_arrays_are_lists(rm):
    scorer = PenalisedReward(rm)
    found = scorer.of(*(np.array(column, dtype=object) for column in (PROMPTS, RESPONSES, REFERENCES)))
    assert found.as_list() == scorer.of(PROMPTS, RESPONSES, REFERENCES).as_list()


def test_a_folder_is_no_model():
    with pytest.raises(InputError, match="rm must be a BayesianRewardModel or a server's Client, not 'my-rm'"):
        PenalisedReward("my-rm")


def test_no_rows_are_nothing_to_score(rm):
    with pytest.raises(InputError, match="nothing to score"):
        PenalisedReward(rm).of([], [])


def test_metrics_tell_whose_advantage_changes_its_sign():
    mean, penalty = torch.tensor([1.0, 0.0, 0.4, math.nan]).double(), torch.tensor([2.0, 0.0, 0.0, math.nan]).double()
    found = PenalisedRewards(mean - penalty, mean, penalty, penalty, torch.tensor([True, False, False, True]), [0] * 4)
    told = found.metrics()
    assert told["advantage_flips"] == pytest.approx(1.0)
    assert told["penalised"] == told["truncated"] == pytest.approx(1 / 3)
    assert told["mean"] == pytest.approx(1.4 / 3)
    assert PenalisedRewards(*[mean[3:]] * 4, torch.tensor([False]), [0]).metrics() == {}


def test_rows_that_were_cut_are_told(rm):
    responses = [words(200), "\ud800", words(3), words(4)]
    with pytest.warns(UserWarning, match="no reward for row 2"):
        found = PenalisedReward(rm).of([words(3)] * 4, responses)
    assert found.truncated.tolist() == [True, False, False, False]
    assert found.metrics()["truncated"] == pytest.approx(1 / 3)


def test_a_penalty_that_means_nothing_is_refused(rm):
    with pytest.raises(InputError, match="penalty must be one of std, entropic, none, not 'sd'"):
        PenalisedReward(rm, "sd")


def test_a_model_without_a_posterior_is_refused_before_training_begins(adapter_folder):
    rm = BayesianRewardModel.from_pretrained(adapter_folder, device="cpu")
    with pytest.raises(InputError, match="there is no posterior"):
        PenalisedReward(rm)


@pytest.mark.parametrize("unreadable", [None, "any\0"])
def test_a_row_whose_reference_cannot_be_read_has_no_reward_and_the_others_have_theirs(rm, unreadable):
    prompts, responses = ["a", "about"], ["all", "are"]
    with pytest.warns(UserWarning, match="no reward for row 1.*reference 1"):
        found = PenalisedReward(rm).of(prompts, responses, [unreadable, "art"]).as_list()
    alone = PenalisedReward(rm).of(prompts[1:], responses[1:], ["art"]).as_list()
    assert found == [None, pytest.approx(alone[0], abs=1e-5)]
