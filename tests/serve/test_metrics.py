"""What Prometheus reads."""

from prometheus_client.parser import text_string_to_metric_families

from bayesrm_fast.serve.app import create_app


def samples(client):
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def test_the_engines_figures_are_those_of_now(client, scorer):
    found = samples(client)
    stats = scorer.stats()
    names = ("queue_tokens", "queued_requests", "padding")
    assert [found[f"bayesrm_{name}", "rm"] for name in names] == [getattr(stats, name) for name in names]
    names = ("batches", "batch_tokens", "refused", "cancelled", "bisections", "memory_halvings", "seconds")
    assert [found[f"bayesrm_{name}_total", "rm"] for name in names] == [getattr(stats, name) for name in names]


def test_answers_and_rows_are_counted(served):
    with served() as client:
        client.post("/get_reward", json={"query": ["able act"] * 3})
        client.post("/get_reward", json={"query": ["able"], "form": "rewards"})
        client.post("/get_reward", json={})
        client.get("/nowhere")
        found = samples(client)
    assert found["bayesrm_requests_total", "/get_reward", "200"] == 2
    assert found["bayesrm_requests_total", "/get_reward", "422"] == 1
    assert found["bayesrm_requests_total", "none", "404"] == 1
    assert (found["bayesrm_rows_total", "rm", "true"], found["bayesrm_rows_total", "rm", "false"]) == (3, 1)
    assert found["bayesrm_request_tokens_sum", "rm"] == 7
    assert found["bayesrm_request_seconds_count", "/get_reward"] == 3


def test_two_apps_count_by_themselves(client, scorer):
    """A registry of the process would refuse the second."""
    create_app({"rm": scorer})
