"""OpenRLHF's remote reward model."""

import math

import pytest
from fake_scorer import STD, reward

from bayesrm_fast.posterior.probit import probability_above
from bayesrm_fast.select.penalties import PenaltyOfStd
from bayesrm_fast.serve.options import ServerOptions

QUERY = "<s>able act</s>"


@pytest.mark.parametrize("name", ["openrlhf", "openrlhf_rewards", "openrlhf_empty"])
def test_the_bytes_are_the_trainers(golden, name):
    golden(name, "/get_reward")


def test_what_it_logs_are_numbers(client):
    """A text in `extra_logs` crashes the trainer."""
    logs = client.post("/get_reward", json={"query": [QUERY] * 2, "prompts": ["able"] * 2, "labels": [None] * 2}).json()
    assert all(type(value) is float for values in logs["extra_logs"].values() for value in values)
    assert {len(values) for values in logs["extra_logs"].values()} == {2}


def test_the_text_is_tokenized_as_it_stands(client):
    """Its special tokens are there already."""
    assert client.post("/get_reward", json={"query": [QUERY]}).json()["rewards"] == [reward(QUERY)]


@pytest.mark.parametrize("field", ["body", "address"])
def test_the_reward_may_be_a_lower_bound(client, field):
    asked = {"penalty": "std", "k": 2.0}
    body, address = ({"query": [QUERY], **asked}, {}) if field == "body" else ({"query": [QUERY]}, asked)
    assert client.post("/get_reward", json=body, params=address).json()["rewards"] == [reward(QUERY) - 2 * STD]


def test_the_server_is_told_what_the_reward_is(served):
    with served(ServerOptions(penalty=PenaltyOfStd("std", 3.0), threshold=-1.0)) as client:
        found = client.post("/get_reward", json={"query": [QUERY]}).json()
        assert found["rewards"] == [reward(QUERY) - 3 * STD]
        assert found["scores"] == [probability_above(-1.0, reward(QUERY), STD)]
        assert client.post("/get_reward", json={"query": [QUERY], "penalty": "none"}).json()["rewards"] == [
            reward(QUERY)
        ]


def test_means_alone_take_no_backward_pass(client, scorer, monkeypatch):
    asked = []
    scores = scorer._scores
    monkeypatch.setattr(scorer, "_scores", lambda texts, variance: asked.append(variance) or scores(texts, variance))
    for body in ({"form": "rewards"}, {"form": "rewards", "penalty": "std"}, {}):
        client.post("/get_reward", json={"query": [QUERY], **body})
    assert asked == [False, True, True]


@pytest.mark.parametrize(("mean", "std", "chance"), [(0, 1, 0.5), (1, 0, 1), (-1, 0, 0), (0, 0, 0.5), (40, 1, 1)])
def test_scores_are_probabilities(mean, std, chance):
    assert probability_above(0.0, mean, std) == chance
    assert math.isclose(probability_above(2.0, 2 + std, std), 0.8413447460685429 if std else 0.5)
