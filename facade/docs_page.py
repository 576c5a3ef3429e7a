"""The description of the API as one HTML page, which needs no script and nothing from elsewhere. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d8d8d8, #444); --soft: light-dark(#f4f4f4, #242424); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: left; vertical-align: top; }
summary { cursor: pointer; padding: .3rem 0; }
"""


def docs_page(document: dict[str, Any]) -> str:
    """HTML of ``document``, which is OpenAPI 3.1 as :mod:`facade.openapi` writes it."""
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    operations = "".join(
        part
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        for part in _operation(method.upper(), path, operation)
    )
    schemas = "".join(_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items()))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{title}</h1><p>{escape(info['description'])}</p>"
        f'<p>For programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"{operations}<h2>Schemas</h2>{schemas}</body></html>\n"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method} {escape(path)}</code></h2><p>{escape(operation['summary'])}"
    yield "</p>" if operation.get("security") == [] else " Needs a key.</p>"
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        yield f"<p>The body is {_link(content['schema'])}, for example:</p><pre>{_json(content['example'])}</pre>"
    yield "<table><tr><th>status<th>answer<th>schema</tr>"
    for status, answer in operation["responses"].items():
        schema = answer["content"]["application/json"]["schema"]
        yield f"<tr><td>{status}<td>{escape(answer['description'])}<td>{_link(schema)}</tr>"
    yield "</table>"


def _schema(name: str, schema: dict[str, Any]) -> str:
    return f'<details id="{escape(name)}"><summary>{escape(name)}</summary><pre>{_json(schema)}</pre></details>'


def _link(schema: dict[str, Any]) -> str:
    name = escape(schema["$ref"].rpartition("/")[2])
    return f'<a href="#{name}">{name}</a>'


def _json(value: Any) -> str:
    return escape(json.dumps(value, indent=2, ensure_ascii=False))
