"""vLLM's routes, and which program a body of `/classify` is from."""

import math

import pytest
from fake_scorer import STD, reward

TALK = [{"role": "user", "content": "able"}, {"role": "assistant", "content": "act"}]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("vllm_classify", "/classify"),
        ("vllm_classify_sigmoid", "/classify"),
        ("vllm_classify_messages", "/classify"),
        ("vllm_classify_ids", "/classify"),
        ("vllm_pooling", "/pooling"),
        ("vllm_pooling_ids", "/pooling"),
        *[(f"vllm_score_{form}", path) for form in ("texts", "queries", "data") for path in ("/score", "/v1/score")],
        *[("vllm_rerank", path) for path in ("/rerank", "/v1/rerank", "/v2/rerank")],
    ],
)
def test_the_bytes_are_the_clients(golden, name, path):
    """`vllm_classify` is what the reward loop of verl 0.9.1 sends."""
    golden(name, path)


@pytest.mark.parametrize(("activation", "is_sigmoid"), [(None, True), (True, True), (False, False), ("absent", True)])
def test_one_label_means_a_sigmoid_unless_it_is_told(client, activation, is_sigmoid):
    body = {"input": "able"} | ({} if activation == "absent" else {"use_activation": activation})
    found = client.post("/classify", json=body).json()["data"][0]
    value = reward("<s>able")
    assert math.isclose(found["probs"][0], 1 / (1 + math.exp(-value)) if is_sigmoid else value)
    assert found["std"] == STD


def test_special_tokens_are_added_unless_it_is_told(client):
    body = {"input": "able", "add_special_tokens": False, "use_activation": False}
    assert client.post("/classify", json=body).json()["data"][0]["probs"] == [reward("able")]


@pytest.mark.parametrize(
    ("body", "is_sglang"), [({"input": "able"}, False), ({"messages": TALK}, False), ({"text": "able"}, True)]
)
def test_the_program_is_known_by_its_field(client, body, is_sglang):
    answer = client.post("/classify", json=body)
    assert answer.status_code == 200
    assert ("embedding" in answer.json()) == is_sglang


@pytest.mark.parametrize("messages", [TALK[:1], TALK[1:], [*TALK, TALK[0]]])
def test_messages_end_with_the_response(client, messages):
    answer = client.post("/classify", json={"messages": messages})
    assert answer.status_code == 422
    assert "end with the assistant's response" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/classify", "/pooling"])
@pytest.mark.parametrize("body", [None, [], "input", 1])
def test_what_is_no_object_is_refused(client, path, body):
    assert client.post(path, json=body).status_code == 422


def test_another_task_is_refused_by_name(client):
    answer = client.post("/pooling", json={"task": "embed", "input": "able"})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "task: Input should be 'classify'"


def test_documents_are_ranked_by_the_reward_that_is_asked_for(client):
    body = {"query": "able", "documents": ["a", "act again"], "use_activation": False, "penalty": "std", "k": 4.0}
    results = client.post("/rerank", json=body).json()["results"]
    assert [(one["index"], one["relevance_score"]) for one in results] == [
        (1, reward("able act again") - 4 * STD),
        (0, reward("able a") - 4 * STD),
    ]


def test_usage_counts_tokens_after_the_cut(client):
    assert client.post("/classify", json={"input": ["able " * 50, "act"]}).json()["usage"]["prompt_tokens"] == 9


@pytest.mark.parametrize("path", ["/classify", "/pooling"])
@pytest.mark.parametrize(
    ("given", "texts"),
    [([5, 60, 7], ["5 60 7"]), ([[5, 60], [7]], ["5 60", "7"]), ([], []), ("5 60", ["<s>5 60"])],
)
def test_token_ids_get_no_special_tokens(client, scorer, path, given, texts):
    data = client.post(path, json={"input": given, "use_activation": False}).json()["data"]
    assert [one.get("probs", one.get("data")) for one in data] == [[reward(text)] for text in texts]


@pytest.mark.parametrize("given", [[-1], [[-1]], [1.5], [True], [[1], "a"], ["a", 1], [[["a"]]]])
def test_what_is_neither_text_nor_token_ids_is_refused_by_its_field(client, given):
    answer = client.post("/classify", json={"input": given})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("input")


def test_every_response_is_scored_with_its_own_prompt(client):
    body = {"text_1": ["able", "all"], "text_2": ["act", "again"], "use_activation": False}
    data = client.post("/score", json=body).json()["data"]
    assert [one["score"] for one in data] == [reward("able act"), reward("all again")]


@pytest.mark.parametrize(("prompts", "responses"), [(["a", "b"], ["c"]), (["a", "b"], ["c", "d", "e"])])
def test_prompts_and_responses_must_be_as_many(client, prompts, responses):
    answer = client.post("/score", json={"queries": prompts, "documents": responses})
    assert answer.status_code == 422
    count = f"there are {len(prompts)} prompts for {len(responses)} responses"
    assert answer.json()["error"]["message"] == f"{count}: give one, or as many"
