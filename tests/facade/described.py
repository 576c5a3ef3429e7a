"""Holds answers against the document at ``/openapi.json``: no status and no shape that it does not have."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from facade.openapi import openapi_document

ERROR = "Error"


def check_answer(method: str, path: str, status: int, body: Any) -> None:
    """A whole answer to ``method path``. What is not served answers with an error, whatever its status."""
    operation = _operation(method.lower(), path)
    if operation is None:
        check(body, ERROR)
        return
    described = operation["responses"].get(str(status))
    assert described is not None, f"{method} {path} does not say that it answers {status}"
    check(body, _name(described["content"]["application/json"]["schema"]))


def check_event(path: str, data: Any) -> None:
    """The data of an event of a stream of ``POST path``: a chunk, or an error."""
    operation = _operation("post", path)
    assert operation is not None
    event = operation["responses"]["200"]["content"]["text/event-stream"]["schema"]
    chunk, error = event["properties"]["data"]["anyOf"][1]["contentSchema"]["anyOf"]
    check(data, _name(error if "error" in data else chunk))


def check(value: Any, name: str) -> None:
    """``value`` against a schema of the document."""
    _validator(name).validate(value)


@cache
def _validator(name: str) -> Draft202012Validator:
    components = openapi_document()["components"]
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": components})


def _operation(method: str, path: str) -> dict[str, Any] | None:
    for template, methods in openapi_document()["paths"].items():
        # A model's name may hold slashes.
        if re.fullmatch(re.sub(r"\{\w+\}", ".+", template), path) and method in methods:
            found: dict[str, Any] = methods[method]
            return found
    return None


def _name(schema: dict[str, str]) -> str:
    return schema["$ref"].rpartition("/")[2]
