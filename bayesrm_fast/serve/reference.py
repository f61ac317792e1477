"""The page at `/docs`: every route with its fields, out of the OpenAPI document; nothing to load, no script."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 0 auto; padding: 1rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-top: 1px solid #8886 }
td code { overflow-wrap: anywhere }
summary { cursor: pointer }
section { margin-bottom: 1.5rem }
"""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'",
    "X-Content-Type-Options": "nosniff",
}

Schema = Mapping[str, Any]


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """The page."""
    return HTMLResponse(reference(request.app.openapi()), headers=_HEADERS)


def reference(document: Schema) -> str:
    """A page of HTML for an OpenAPI document."""
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append(_operation(f"{method.upper()} {path}", operation))
    title = escape(document["info"]["title"])
    tags = "".join(f"<section><h2>{escape(tag)}</h2>{''.join(found)}</section>" for tag, found in by_tag.items())
    schemas = "".join(_schema(name, one) for name, one in document["components"]["schemas"].items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<h1>{title}</h1>{_paragraphs(document['info'])}"
        f'<p>The same as <a href="openapi.json">an OpenAPI document</a>.</p>{tags}<h2>Fields</h2>{schemas}</html>'
    )


def _operation(name: str, operation: Schema) -> str:
    body = operation.get("requestBody", {"content": {}})
    asked = [("body", _types(one["schema"] for one in body["content"].values()))] if body["content"] else []
    answers = {
        status: (_types(one.get("schema", {}) for one in answer.get("content", {}).values()), answer["description"])
        for status, answer in operation["responses"].items()
    }
    rows = [*((name, kind, "") for name, kind in asked)]
    rows += [(f"?{one['name']}", _type(one["schema"]), _told(one)) for one in operation.get("parameters", [])]
    rows += [(status, kind, _prose(what)) for status, (kind, what) in answers.items()]
    return f"<details><summary><code>{escape(name)}</code></summary>{_paragraphs(operation)}{_table(rows)}</details>"


def _schema(name: str, schema: Schema) -> str:
    required = schema.get("required", ())
    rows = [
        (field + ("" if field in required else "?"), _type(one), _told(one))
        for field, one in schema.get("properties", {}).items()
    ]
    return f'<section id="{escape(name)}"><h3>{escape(name)}</h3>{_paragraphs(schema)}{_table(rows)}</section>'


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    cells = "".join(f"<tr><th><code>{escape(name)}</code><td>{kind}<td>{told}" for name, kind, told in rows)
    return f"<table>{cells}</table>"


def _paragraphs(described: Schema) -> str:
    return "".join(f"<p>{_prose(one)}</p>" for one in described.get("description", "").split("\n\n"))


def _prose(text: str) -> str:
    """A description's Markdown, of which it has code and emphasis."""
    return re.sub(r"\*(\w[^*]*)\*", r"<em>\1</em>", re.sub("`([^`]+)`", r"<code>\1</code>", escape(text)))


def _told(field: Schema) -> str:
    default = f" Default: {_json(field['default'])}." if field.get("default") is not None else ""
    examples = "".join(f" <code>{_json(one)}</code>" for one in field.get("examples", ()))
    return _prose(field.get("description", "")) + default + examples


def _json(value: Any) -> str:
    return escape(json.dumps(value, ensure_ascii=False))


def _types(schemas: Iterable[Schema]) -> str:
    return " or ".join(dict.fromkeys(map(_type, schemas)))


def _type(schema: Schema) -> str:
    """What a value is, with links to the fields of objects."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "enum" in schema or "const" in schema:
        return " or ".join(f"<code>{_json(one)}</code>" for one in schema.get("enum", [schema.get("const")]))
    several = schema.get("anyOf") or schema.get("oneOf")
    if several:
        return _types(several)
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return escape(str(schema.get("type", "anything")))
