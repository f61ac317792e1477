"""The page that tells every route."""

import re

import pytest

from bayesrm_fast.serve.reference import reference


@pytest.fixture
def page(client):
    return client.get("/docs")


def test_it_loads_nothing_from_anywhere(page):
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "unsafe" not in page.headers["content-security-policy"]
    assert not re.search(r"https?://|\ssrc=|@import|url\(|<(script|link|img)", page.text)


def test_every_route_and_every_field_stands_there(client, page):
    document = client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f"<code>{method.upper()} {path}</code>" in page.text
            assert all(f"<code>{status}</code>" in page.text for status in operation["responses"])
    for name, schema in document["components"]["schemas"].items():
        section = page.text.partition(f'<section id="{name}">')[2].partition("</section>")[0]
        for field in schema.get("properties", ()):
            assert re.search(rf"<code>{field}\??</code>", section), (name, field)


def test_its_links_lead_somewhere(page):
    links = set(re.findall('href="#(.*?)"', page.text))
    assert links
    assert links <= set(re.findall('id="(.*?)"', page.text))


def test_no_text_becomes_markup():
    document = {
        "info": {"title": "<b>", "description": "*able* `<i>`"},
        "paths": {"/<u>": {"get": {"tags": ["<s>"], "responses": {"200": {"description": "<p>"}}}}},
        "components": {
            "schemas": {"<q>": {"properties": {"<a>": {"type": "<em>", "default": "<hr>", "examples": ["<br>"]}}}}
        },
    }
    found = reference(document)
    assert not re.search("<(b|i|u|s|q|a|hr|br)>", found)
    assert "<em>able</em> <code>&lt;i&gt;</code>" in found
    assert all(f"&lt;{tag}&gt;" in found for tag in ("b", "i", "u", "s", "p", "q", "a", "em", "hr", "br"))
