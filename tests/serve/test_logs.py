"""Lines of JSON, without texts."""

import json
import logging

import pytest

from bayesrm_fast.serve.logs import JsonLines

SECRET = "a text of a client"


@pytest.fixture
def lines(caplog):
    """What a server has logged."""
    caplog.set_level(logging.INFO, "bayesrm_fast.serve")
    return lambda: [json.loads(JsonLines().format(record)) for record in caplog.records]


def test_a_request_is_one_line(client, lines):
    client.post("/get_reward", json={"query": [SECRET] * 2}, headers={"X-Request-Id": "mine"})
    line = lines()[-1]
    assert line.pop("ms") >= 0
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "bayesrm_fast.serve.logs",
        "message": "request",
        "request_id": "mine",
        "method": "POST",
        "route": "/get_reward",
        "status": 200,
        "model": "rm",
        "rows": 2,
        "tokens": 10,
    }


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/get_reward", {"query": [SECRET]}),
        ("/get_reward", {"query": SECRET}),
        ("/v1/rewards", {"prompt": SECRET, "responses": [[{"role": "user", "content": SECRET}]]}),
        ("/classify", {"text": {SECRET: SECRET}}),
        (f"/{SECRET}", {}),
        (f"/get_reward?k={SECRET}", {"query": []}),
    ],
)
@pytest.mark.parametrize("fault", [None, ValueError(SECRET)])
def test_no_text_is_logged_or_repeated(client, scorer, lines, path, body, fault):
    scorer.fault = fault
    answer = client.post(path, json=body)
    assert SECRET not in json.dumps(lines())
    assert answer.status_code == 200 or SECRET not in answer.text


def test_a_fault_is_answered_and_logged_by_its_place(client, scorer, lines):
    scorer.fault = ZeroDivisionError(SECRET)
    answer = client.post("/get_reward", json={"query": ["able"]}, headers={"X-Request-Id": "mine"})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "a fault of the server; its log has it as request mine"
    fault, request = lines()[-2:]
    assert (fault["exception"], fault["request_id"]) == ("ZeroDivisionError", "mine")
    assert any("fake_scorer.py" in frame for frame in fault["frames"])
    assert (request["level"], request["status"]) == ("warning", 500)
