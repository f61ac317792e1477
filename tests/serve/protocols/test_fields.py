"""What every drop-in takes beside its own fields."""

import math

import pytest
from fake_scorer import STD, FakeScorer

from bayesrm_fast import InputError
from bayesrm_fast.select.penalties import PenaltyOfStd
from bayesrm_fast.serve.protocols.fields import RewardFields, rewards_of, sigmoid

DROP_INS = {
    "/get_reward": {"query": ["able"]},
    "/classify": {"input": "able"},
    "/pooling": {"input": "able"},
    "/score": {"queries": "able", "documents": "act"},
    "/v1/score": {"text_1": "able", "text_2": ["act"]},
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
@pytest.mark.parametrize("asked", [{"penalty": "relative"}, {"k": -1.0}, {"k": "one"}, {"k": 2.0}])
def test_another_reward_is_refused_by_its_field(client, path, asked):
    for params, body in ((asked, {}), ({}, asked)):
        answer = client.post(path, params=params, json=DROP_INS[path] | body)
        assert answer.status_code == 422
        assert answer.json()["error"]["message"].startswith(next(iter(asked)))


@pytest.mark.parametrize("path", DROP_INS)
def test_unknown_fields_of_other_versions_are_taken(client, path):
    assert client.post(path, json=DROP_INS[path] | {"truncate_prompt_tokens": -1, "priority": 0}).status_code == 200


def test_without_std_the_rewards_are_the_means():
    assert rewards_of(PenaltyOfStd("std"), [1.0], None) == [1.0]
    assert rewards_of(PenaltyOfStd("std"), [1.0], [0.25]) == [0.75]


def test_a_reward_that_no_number_can_hold_is_refused():
    with pytest.raises(InputError, match=r"k is 1e\+308, and a reward less its penalty is not a finite number"):
        rewards_of(PenaltyOfStd("entropic", 1e308), [0.0], [1e3])


@pytest.mark.parametrize("path", DROP_INS)
@pytest.mark.parametrize("asked", [{"penalty": "std", "k": 2.0}, {"penalty": "entropic", "k": 4.0}])
def test_every_drop_in_lessens_its_reward_by_what_is_asked(client, path, asked):
    body = DROP_INS[path] | {"use_activation": False}
    found, less = (figures(client.post(path, json=body, params=params).json()) for params in ({}, asked))
    weight = {"std": STD, "entropic": STD**2 / 2}[asked["penalty"]]
    assert less == pytest.approx([one - asked["k"] * weight for one in found])
    assert figures(client.post(path, json=body | asked).json()) == less


WHERE = ("rewards", "scores", "results", "probs", "embedding", "score", "relevance_score", "data")


def figures(answer):
    """The rewards, wherever they stand."""
    if isinstance(answer, float):
        return [answer]
    if isinstance(answer, dict):
        return figures(next(answer[name] for name in WHERE if name in answer))
    return [figure for one in answer for figure in figures(one)]


@pytest.mark.parametrize("value", [-1e4, -1.0, 0.0, 1.0, 1e4])
def test_the_sigmoid_does_not_overflow(value):
    assert math.isclose(sigmoid(value) + sigmoid(-value), 1)


def test_fields_are_optional():
    assert RewardFields().model_dump() == {"model": None, "penalty": None, "k": None}
