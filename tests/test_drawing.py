"""Candidates until another one is not worth its cost."""

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.select.stopping import Stopping

RESPONSES = [words(2 + i % 5, 10 + i) for i in range(40)]


@pytest.fixture(scope="module")
def rm():
    model = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))
    return model.fit(tiny_pairs(), rank=4, prior_precision=1.0)


def test_drawing_stops_where_the_rewards_say(rm):
    rewards = rm.rewards([words(3, 1)] * 40, RESPONSES)
    cost = 0.2 * float(rewards.std())
    expected = Stopping(cost)
    for reward in rewards.tolist():
        expected.observe(reward)
        if expected.should_stop:
            break
    drawing = rm.stopping(words(3, 1), cost)
    for response in RESPONSES:
        if drawing.add(response):
            break
    count = expected.drawn
    assert drawing.responses == RESPONSES[:count]
    assert 4 <= count < 40
    assert drawing.best == int(rewards[:count].argmax())
    assert drawing.expected_gain <= cost


def test_a_batch_is_its_candidates_one_by_one(rm):
    together, apart = (rm.stopping(words(3, 1), 0.01, typical_std=0.1) for _ in range(2))
    told = [apart.add(response) for response in RESPONSES[:6]]
    assert together.add_all(RESPONSES[:6]) == told[-1] == apart.is_enough
    assert (together.best, len(together.responses)) == (apart.best, 6)
    assert together.expected_gain == pytest.approx(apart.expected_gain, rel=1e-3)


def test_what_cannot_be_drawn_is_told_and_nothing_is_taken(rm):
    for cost in (0.0, -1.0, float("nan"), "1"):
        with pytest.raises(InputError, match="cost must be"):
            rm.stopping("a", cost)
    drawing = rm.stopping("a", 0.1)
    with pytest.raises(InputError, match="no candidate was taken"):
        drawing.best  # noqa: B018
    with pytest.raises(InputError, match="responses is empty"):
        drawing.add_all([])
    with pytest.raises(InputError, match="responses"):
        drawing.add_all(["able", 3])
    for given in ("able", (text for text in ["able"])):
        with pytest.raises(InputError, match="responses must be a list"):
            drawing.add_all(given)
    assert drawing.responses == []
    assert torch.isinf(torch.tensor(drawing.expected_gain))
