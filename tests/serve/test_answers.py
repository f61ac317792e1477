"""Answers to requests that are not served."""

import pytest

from bayesrm_fast.serve.answers import LONGEST_MESSAGE, busy, documented, refusal


def test_a_sentence_has_an_end():
    answer = refusal(422, "x" * 10_000)
    assert len(answer.body) < LONGEST_MESSAGE + 100
    assert answer.body.decode().count("…") == 1


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (2.5, "3"), (100.0, "100")])
def test_the_seconds_to_wait_are_whole(seconds, header):
    assert busy("full", seconds).headers == {"Retry-After": header}


def test_what_is_documented_has_a_meaning():
    assert all(one["description"] for one in documented(400, 401, 404, 408, 413, 422, 500, 503).values())


@pytest.mark.parametrize(("method", "path", "status"), [("get", "/nowhere", 404), ("get", "/get_reward", 405)])
def test_other_errors_have_the_same_form(client, method, path, status):
    answer = getattr(client, method)(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, status)


def test_many_problems_are_counted(client):
    body = {"prompt": 1, "responses": [1, 2, 3, 4]}
    message = client.post("/v1/rewards", json=body).json()["error"]["message"]
    assert "; and " in message
    assert message.endswith(" more")


def test_a_name_that_a_client_made_up_is_cut(client):
    body = {"prompt": "able", "responses": ["act"], "a secret " * 50: 1}
    assert len(client.post("/v1/rewards", json=body).json()["error"]["message"]) < 100
