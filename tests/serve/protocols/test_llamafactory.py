"""LlamaFactory's score route."""

from fake_scorer import FakeScorer, reward


def test_the_bytes_are_the_trainers(golden):
    golden("llamafactory", "/v1/score/evaluation")


def test_the_name_that_its_trainer_always_sends_is_no_models_name(served):
    first, second = FakeScorer(), FakeScorer()
    with served(first=first, second=second) as client:
        body = {"model": "model", "messages": ["able"]}
        assert client.post("/v1/score/evaluation", json=body).json()["model"] == "first"
        answer = client.post("/v1/score/evaluation", params={"model": "second"}, json=body).json()
        assert (answer["model"], answer["scores"]) == ("second", [reward("able")])
        assert client.post("/v1/score/evaluation", json=body | {"model": "third"}).status_code == 404
