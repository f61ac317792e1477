"""What every drop-in takes beside its own fields."""

import math

import pytest
from fake_scorer import FakeScorer

from bayesrm_fast.serve.options import RewardChoice
from bayesrm_fast.serve.protocols.fields import RewardFields, rewards_of, sigmoid

DROP_INS = {
    "/get_reward": {"query": ["able"]},
    "/classify": {"input": "able"},
    "/pooling": {"input": "able"},
    "/rerank": {"query": "able", "documents": ["act"]},
    "/v1/rerank": {"query": "able", "documents": ["act"]},
    "/v2/rerank": {"query": "able", "documents": ["act"]},
    "/v1/embeddings": {"input": "able"},
    "/reward": {"prompt": "able", "response": "act"},
    "/v1/score/evaluation": {"messages": ["able"]},
}


@pytest.mark.parametrize("path", DROP_INS)
def test_a_model_is_chosen_by_body_or_address(served, path):
    first, second = FakeScorer(), FakeScorer()
    with served(first=first, second=second) as client:
        first.begun.clear()
        second.begun.clear()
        by_both = [({"model": "second"}, {}), ({}, {"model": "second"}), ({"model": "first"}, {"model": "second"})]
        for params, body in by_both:
            assert client.post(path, params=params, json=DROP_INS[path] | body).status_code == 200
        assert (len(first.begun), len(second.begun)) == (0, 3)


@pytest.mark.parametrize("path", DROP_INS)
def test_an_unknown_model_is_told_with_those_that_there_are(client, path):
    answer = client.post(path, json=DROP_INS[path] | {"model": "another"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "there is no model 'another'; there are: rm"


@pytest.mark.parametrize("path", DROP_INS)
@pytest.mark.parametrize("asked", [{"reward": "best"}, {"k": -1.0}, {"k": "one"}])
def test_another_reward_is_refused_by_its_field(client, path, asked):
    for params, body in ((asked, {}), ({}, asked)):
        answer = client.post(path, params=params, json=DROP_INS[path] | body)
        assert answer.status_code == 422
        assert answer.json()["error"]["message"].startswith(next(iter(asked)))


@pytest.mark.parametrize("path", DROP_INS)
def test_unknown_fields_of_other_versions_are_taken(client, path):
    assert client.post(path, json=DROP_INS[path] | {"truncate_prompt_tokens": -1, "priority": 0}).status_code == 200


def test_without_std_the_rewards_are_the_means():
    assert rewards_of(RewardChoice("lcb"), [1.0], None) == [1.0]
    assert rewards_of(RewardChoice("lcb"), [1.0], [0.25]) == [0.75]


@pytest.mark.parametrize("value", [-1e4, -1.0, 0.0, 1.0, 1e4])
def test_the_sigmoid_does_not_overflow(value):
    assert math.isclose(sigmoid(value) + sigmoid(-value), 1)


def test_fields_are_optional():
    assert RewardFields().model_dump() == {"model": None, "reward": None, "k": None}
