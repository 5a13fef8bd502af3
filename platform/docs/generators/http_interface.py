"""The page of the HTTP interface, from serve/openapi.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from generators.markdown import anchor, cell, code, table

OPENAPI = Path(__file__).resolve().parents[3] / "serve" / "openapi.json"


def page() -> str:
    """Markdown of the page."""
    document = json.loads(OPENAPI.read_text(encoding="utf-8"))
    endpoints = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    endpoints.sort(key=lambda each: ("/explore/" in each[1], each[1], each[0]))
    schemas = document["components"]["schemas"]
    parts = [
        "# HTTP API\n",
        f"{document['info']['description']} For programs there are `serve/openapi.json` in the repository and "
        "`/openapi.json` of a running service. "
        "How to run one: [Serve](../how-to/serve.md).\n",
        "Every request but those to `/healthz` and `/readyz` needs `Authorization: Bearer KEY`, unless the service "
        "runs without keys. Errors are `application/problem+json` "
        "([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)) with `title`, `detail` and a request id. "
        "Endpoints below `/v1/explore/` serve the explorer page and may change with it.\n",
        table(
            ["endpoint", "purpose"],
            (
                [f"[`{method} {path}`](#{anchor(f'{method} {path}')})", cell(_about(operation).split("\n\n")[0])]
                for method, path, operation in endpoints
            ),
        ),
    ]
    for method, path, operation in endpoints:
        parts += _section(method, path, operation)
    parts.append("## Bodies { #bodies }\n")
    parts.append("JSON bodies of requests and answers.\n")
    for name, schema in sorted(schemas.items()):
        parts += _schema(name, schema)
    return "\n".join(parts)


def _about(operation: dict[str, Any]) -> str:
    return str(operation.get("description") or operation.get("summary") or "")


def _section(method: str, path: str, operation: dict[str, Any]) -> list[str]:
    parts = [f"## `{method} {path}` {{ #{anchor(f'{method} {path}')} }}\n"]
    parts += [f"{cell(paragraph)}\n" for paragraph in _about(operation).split("\n\n")]
    rows = [
        [
            code(each["name"]),
            each["in"],
            code(_type(each.get("schema", {}))),
            _default(each.get("schema", {}), required=bool(each.get("required"))),
            cell(each.get("description") or each.get("schema", {}).get("description") or ""),
        ]
        for each in operation.get("parameters", [])
    ]
    if rows:
        parts.append(table(["parameter", "in", "type", "default", "meaning"], rows))
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        shown = ", ".join(f"{code(kind)}{_of(content)}" for kind, content in body.items())
        parts.append(f"Body: {shown}.\n")
    answers = []
    for status, answer in operation.get("responses", {}).items():
        content = answer.get("content", {})
        kinds = ", ".join(f"{code(kind)}{_of(each)}" for kind, each in content.items())
        answers.append([code(status), cell(answer.get("description", "")), kinds])
    parts.append(table(["status", "answer", "body"], answers))
    return parts


def _of(content: dict[str, Any]) -> str:
    """` (Embeddings)` with a link, where the content is of a named schema."""
    names = _referenced(content.get("schema", {}))
    return f" ({', '.join(f'[{name}](#{anchor(name)})' for name in names)})" if names else ""


def _referenced(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return [str(schema["$ref"]).rpartition("/")[2]]
        return [name for value in schema.values() for name in _referenced(value)]
    if isinstance(schema, list):
        return [name for value in schema for name in _referenced(value)]
    return []


def _schema(name: str, schema: dict[str, Any]) -> list[str]:
    required = schema.get("required", [])
    rows = []
    for field, about in schema.get("properties", {}).items():
        links = [f"[{each}](#{anchor(each)})" for each in _referenced(about)]
        kind = code(_type(about)) if not links else f"{code(_type(about))} {', '.join(links)}"
        rows.append(
            [code(field), kind, _default(about, required=field in required), cell(about.get("description", ""))]
        )
    about = cell(schema.get("description", ""))
    return [f"### {name} {{ #{anchor(name)} }}\n", *([f"{about}\n"] if about else []), table(_HEAD, rows)]


_HEAD = ["field", "type", "default", "meaning"]


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return "object"
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(each) for each in schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return kind


def _default(schema: dict[str, Any], *, required: bool) -> str:
    if required:
        return "required"
    value = schema.get("default")
    return code(json.dumps(value)) if value not in (None, "") else ""
