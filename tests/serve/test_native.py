"""The server's own routes."""

import pytest
from fake_scorer import STD, reward
from starlette.testclient import TestClient

from bayesrm_fast.serve.app import create_app
from bayesrm_fast.serve.engine import AsyncScorer
from bayesrm_fast.serve.native import MOST_DRAWS_HERE

ASKED = {"prompt": "able", "responses": ["act", "act again"]}
TALK = [{"role": "user", "content": "able"}]
MEANS = [reward("able act"), reward("able act again")]


@pytest.fixture(scope="module")
def real(rm):
    """A client of a server on the real engine."""
    with TestClient(create_app({"rm": AsyncScorer(rm)}), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    "asked",
    [ASKED, {"messages": TALK, "responses": ["act", [{"role": "assistant", "content": "act again", "name": "ann"}]]}],
)
def test_rewards_come_in_the_order_of_the_responses(client, asked):
    found = client.post("/v1/rewards", json=asked, headers={"X-Request-Id": "mine"}).json()
    assert found == {
        "id": "mine",
        "model": "rm",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
        "rewards": [
            {"mean": MEANS[0], "std": STD, "tokens": 2, "truncated": False, "baseline": None},
            {"mean": MEANS[1], "std": STD, "tokens": 3, "truncated": False, "baseline": None},
        ],
    }


@pytest.mark.parametrize("relative", ["prompt", ["act", [{"role": "assistant", "content": "add"}]]])
def test_rewards_may_be_relative(client, relative):
    baseline = sum(MEANS) / 2
    found = client.post("/v1/rewards", json=ASKED | {"relative": relative}).json()["rewards"]
    assert [(one["mean"], one["baseline"]) for one in found] == [(mean - baseline, baseline) for mean in MEANS]


def test_means_alone_take_no_backward_pass(client, scorer, monkeypatch):
    asked = []
    scores = scorer._scores
    monkeypatch.setattr(scorer, "_scores", lambda texts, variance: asked.append(variance) or scores(texts, variance))
    found = client.post("/v1/rewards", json=ASKED | {"variance": False}).json()["rewards"]
    assert [(one["mean"], one["std"]) for one in found] == [(mean, None) for mean in MEANS]
    assert asked == [False]


def test_a_cut_row_is_told(client):
    found = client.post("/v1/rewards", json=ASKED | {"responses": ["act " * 20]}).json()["rewards"]
    assert [(one["tokens"], one["truncated"]) for one in found] == [(8, True)]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": None}, "prompt or messages, one of them"),
        ({"messages": TALK}, "prompt or messages, one of them"),
        ({"prompt": None, "messages": []}, "messages: List should have at least 1 item"),
        ({"prompt": 3}, "prompt: Input should be a valid string"),
        ({"responses": []}, "responses: List should have at least 1 item"),
        ({"responses": ["act", 4]}, "responses[1]: Input should be a valid string"),
        ({"responses": [[{"content": "act"}]]}, "responses[0][0].role: Field required"),
        ({"temperature": 1}, "temperature: Extra inputs are not permitted"),
        ({"relative": "mean"}, "relative: Input should be 'prompt'"),
        ({"relative": "prompt", "variance": False}, "relative goes with variances"),
    ],
)
def test_a_wrong_field_is_told_by_its_name(client, change, sentence):
    answer = client.post("/v1/rewards", json=ASKED | change)
    assert answer.status_code == 422
    assert sentence in answer.json()["error"]["message"]


SECRET = "a text of a client, of some length, that no answer may repeat"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": None, "messages": [{"role": "user", "content": [{"type": SECRET, "text": "able"}]}]},
        {"prompt": None, "messages": [{"role": "user", SECRET: "able"}]},
        {"responses": [[{"role": SECRET, "content": "act"}]]},
        {"rule": SECRET},
        {"rule": {"rule": SECRET}},
        {"rule": {"rule": "std", SECRET: 1}},
        {"rule": {"rule": "std", "k": SECRET}},
        {"rule": {"rule": "thompson", "draws": SECRET}},
        {"rule": {"rule": "soft", "reward": SECRET}},
        {"rule": f'{{"rule": "std", "{SECRET}": 1, "{SECRET}": 2}}'},
        {"model": SECRET},
        {SECRET: SECRET},
    ],
)
def test_no_error_repeats_more_than_the_beginning_of_a_name(real, change):
    answer = real.post("/v1/best_of_n", json=ASKED | change)
    assert answer.status_code in (404, 422)
    assert SECRET[:41] not in answer.text


def test_what_the_model_refuses_is_told_as_it_says_it(client):
    answer = client.post("/v1/rewards", json=ASKED | {"responses": ["a\0"]})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "response 1 contains a NUL character"


@pytest.mark.parametrize(
    ("rule", "described"),
    [
        ({"rule": "mean"}, {"rule": "mean"}),
        ({"rule": {"rule": "std", "k": 0.5}}, {"rule": "std", "k": 0.5}),
        (
            {"rule": "soft", "k": 2.0},
            {"rule": "soft", "temperature": 1.0, "seed": 0, "reward": {"rule": "std", "k": 2.0}},
        ),
    ],
)
def test_a_rule_is_taken_by_name_or_description(client, rule, described):
    found = client.post("/v1/best_of_n", json=ASKED | rule).json()
    assert found["rule"] == described
    assert [one["mean"] for one in found["candidates"]] == MEANS
    assert found["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


def test_what_was_not_needed_to_choose_is_null(client):
    """JSON has no NaN."""
    answer = client.post("/v1/best_of_n", json=ASKED)
    found = answer.json()
    assert found["index"] == 0
    assert [(one["std"], one["score"]) for one in found["candidates"]] == [(STD, MEANS[0] - STD), (None, None)]
    assert "NaN" not in answer.text


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("sing", "rule must be one of mean"),
        ({"rule": "std", "beta": 1}, "rule std takes k, not beta"),
        ({"name": "std"}, "a rule must name itself"),
        ({"rule": "thompson", "draws": 10**6}, f"draws must be at most {MOST_DRAWS_HERE}"),
        ({"rule": "rbon_wd", "reward": {"rule": "thompson", "draws": 10**12}}, ""),
        ({"rule": "soft", "reward": {"rule": "most_probably_best", "draws": 10**6}}, "draws must be at most"),
    ],
)
def test_a_rule_that_cannot_be_served_is_refused(client, scorer, rule, sentence):
    begun = len(scorer.begun)
    answer = client.post("/v1/best_of_n", json=ASKED | {"rule": rule})
    assert answer.status_code == 422
    assert sentence in answer.json()["error"]["message"]
    assert len(scorer.begun) == begun


def test_the_joint_posterior_and_what_follows_from_it(client):
    found = client.post("/v1/covariance", json=ASKED).json()
    assert found["mean"] == MEANS
    assert found["covariance"] == [[STD**2, 0], [0, STD**2]]
    assert found["relative_std"] == pytest.approx([STD / 2**0.5] * 2)
    assert sum(found["probability_of_being_best"]) == pytest.approx(1)
    assert found["preference_probability"][0][0] == 0.5
    assert len(found["expected_regret"]) == 2
    assert (found["tokens"], found["truncated"], found["sketch_error"]) == ([2, 3], [False, False], None)


def test_an_unknown_model_is_told_with_those_that_there_are(client):
    for path in ("/v1/rewards", "/v1/best_of_n", "/v1/covariance"):
        answer = client.post(path, json=ASKED | {"model": "x" * 200})
        assert answer.status_code == 404
        assert answer.json()["error"]["message"].endswith("…'; there are: rm")


def test_the_models_are_listed_as_other_servers_list_them(client):
    (card,) = client.get("/v1/models").json()["data"]
    assert card.pop("created") > 0
    assert card == {
        "id": "rm",
        "object": "model",
        "owned_by": "bayesrm_fast",
        "max_model_len": 8,
        "posterior": "ggn",
        "tuned_k": None,
    }
