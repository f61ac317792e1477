"""The app as a whole: health, its document, and whatever may be sent to it."""

import asyncio
import json
import os
import re
from pathlib import Path

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.serve.app import create_app
from bayesrm_fast.serve.engine import AsyncScorer

CASES = int(os.environ.get("BAYESRM_API_CASES", "100"))
"""Requests that are made up from the document; `make fuzz-api` makes 2,000."""

ROUTES, POSTS = 17, 14


async def get(app, path):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
        return await client.get(path)


class TestHealth:
    def test_it_waits_for_a_score_of_every_model(self, scorer):
        async def check():
            app = create_app({"rm": scorer})
            scorer.held = asyncio.Event()
            async with app.router.lifespan_context(app):
                while not scorer.begun:
                    await asyncio.sleep(0)
                before = await get(app, "/health")
                scorer.held.set()
                while not app.state.served.is_ready:
                    await asyncio.sleep(0)
                return before, await get(app, "/health")

        before, after = asyncio.run(check())
        assert (before.status_code, before.headers["retry-after"]) == (503, "1")
        assert (after.status_code, after.json()) == (200, {"status": "ok"})

    def test_a_model_that_does_not_score_is_never_ready(self, scorer, caplog):
        async def check():
            app = create_app({"rm": scorer})
            scorer.fault = ValueError("NaN")
            async with app.router.lifespan_context(app):
                while not caplog.records:
                    await asyncio.sleep(0)
                return await get(app, "/health")

        assert asyncio.run(check()).status_code == 503
        assert "a model does not score" in caplog.text

    def test_an_engine_that_has_failed_is_not_ready(self, client, scorer):
        scorer.is_closed = True
        assert client.get("/health").status_code == 503


@pytest.fixture(scope="module")
def app(model_folder):
    """On the real engine, with a tiny model."""
    app = create_app({"rm": AsyncScorer(BayesianRewardModel.from_pretrained(model_folder, device="cpu"))})
    with TestClient(app):
        yield app


@pytest.fixture(scope="module")
def document(app):
    return app.openapi()


def operations(document):
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_route_is_described_with_all_that_it_answers(document):
    assert len(operations(document)) == ROUTES
    for name, operation in operations(document):
        assert operation["description"].endswith("."), name
        assert operation["tags"], name
        expected = {"200", "400", "401", "404", "408", "413", "422", "503"} if "POST" in name else {"200"}
        assert expected <= set(operation["responses"]), name


def test_every_field_that_is_no_plain_figure_is_described(document):
    """Of what clients send; a protocol's own fields have at least an example."""
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("description"), name
        if name.endswith(("Asked", "Body")):
            for field, of in schema["properties"].items():
                assert of.keys() & {"description", "examples", "anyOf", "title"}, (name, field)


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "server.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("path", "body"), re.findall(r"^curl localhost:8000(\S+) .*? -d '(.*?)'$", PAGE, re.M | re.S))
def test_the_requests_of_the_page_are_answered(client, path, body):
    assert client.post(path, json=json.loads(body)).status_code == 200


def test_the_page_names_every_route(document):
    assert [path for path in document["paths"] if f"{path}`" not in PAGE] == []


def without_lifespan(app):
    """The same app, which the client would start and end around each request."""

    async def forward(scope, receive, send):
        if scope["type"] == "http":
            await app(scope, receive, send)

    return forward


def is_served(ctx, response, case):
    """The engine has room, so that nothing is excused by 503."""
    assert response.status_code != 503, response.text


CHECKS = [
    is_served,
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what the made up texts are like
@pytest.mark.parametrize("mode", schemathesis.GenerationMode, ids=lambda mode: mode.value)
def test_whatever_is_sent_gets_a_documented_answer(app, mode):
    """Data that the document allows, and data that it forbids."""
    tried = []
    for found in schemathesis.openapi.from_asgi("/openapi.json", without_lifespan(app)).get_all_operations():
        operation = found.ok()
        if mode.is_negative and operation.method != "post":
            continue

        @hypothesis.settings(
            max_examples=-(-CASES // (ROUTES + POSTS)),
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def is_answered(case):
            for fields in (case.query, case.body):  # a name that is made up is 404
                if not mode.is_negative and isinstance(fields, dict):
                    fields.pop("model", None)
            tried.append(case.call_and_validate(checks=CHECKS, timeout=60).status_code)

        is_answered()
    assert tried.count(200) > len(tried) / 3 or mode.is_negative
