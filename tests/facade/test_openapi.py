"""The document that describes the API: valid, in step with what is served, and true of the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from facade.docs_page import docs_page
from facade.field_schemas import RANGES
from facade.openapi import openapi_document
from mantler.errors import ErrorCode, MantlerError
from tests.facade.conftest import COMPLETIONS, MODEL, Facade, chat, completion
from tests.fake_runtime import failing

CHAT = ("/v1/chat/completions", "post")
NEVER_OF_CHAT = {ErrorCode.ROUTE_NOT_FOUND, ErrorCode.METHOD_NOT_ALLOWED, ErrorCode.CANCELLED}


def check(answer: Any, name: str) -> None:
    """Holds ``answer`` against a schema of the document."""
    components = openapi_document()["components"]
    jsonschema.validate(answer, {"$ref": f"#/components/schemas/{name}", "components": components})


def statuses(path: str, method: str) -> set[str]:
    return set(openapi_document()["paths"][path][method]["responses"])


async def test_it_is_valid_and_needs_no_key(facade: Facade) -> None:
    status, document, _ = await facade.get("/openapi.json", headers={})
    assert status == 200
    assert document == openapi_document()
    OpenAPIV31SpecValidator(document).validate()


async def test_the_page_needs_nothing_from_elsewhere(facade: Facade) -> None:
    async with facade.http.get(f"{facade.url}/docs") as response:
        page = await response.text()
        assert response.status == 200
        assert response.content_type == "text/html"
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert page == docs_page(openapi_document())
    assert "://" not in page
    assert "<script" not in page
    assert all(path in page for path in openapi_document()["paths"])


def test_the_page_escapes_what_it_shows() -> None:
    document = {**openapi_document(), "paths": {}, "info": {"title": "<b>", "version": "1", "description": "<i>"}}
    assert "<b>" not in docs_page(document)
    assert "<i>" not in docs_page(document)


def test_examples_are_valid() -> None:
    for methods in openapi_document()["paths"].values():
        for operation in methods.values():
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]["application/json"]
                check(content["example"], content["schema"]["$ref"].rpartition("/")[2])


def bounds() -> Iterator[tuple[str, float, float, bool]]:
    """Field, bound, what lies beyond it, and whether the bound itself is allowed."""
    for name, limits in RANGES.items():
        for keyword, bound in limits.items():
            step = 1 if isinstance(bound, int) else 0.001
            beyond = bound + step if keyword == "maximum" else bound - step
            yield name, bound, beyond, not keyword.startswith("exclusive")


@pytest.mark.parametrize(("name", "bound", "beyond", "included"), list(bounds()))
async def test_documented_bounds_are_the_ones_that_are_kept(
    facade: Facade, name: str, bound: float, beyond: float, included: bool
) -> None:
    rest: dict[str, Any] = {"logprobs": True} if name == "top_logprobs" else {}
    for value, allowed in ((bound, included), (beyond, False)):
        status, body, _ = await facade.post({**chat(**rest), name: value})
        assert status == (200 if allowed else 400), body
        if not allowed:
            assert body["error"]["param"] == name


async def test_health_and_models_are_as_described(facade: Facade) -> None:
    for path, name in (("/health", "Health"), ("/v1/models", "ModelList"), (f"/v1/models/{MODEL}", "Model")):
        status, body, _ = await facade.get(path)
        assert status == 200
        check(body, name)


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}, {"max_tokens": 1}])
async def test_chat_completions_are_as_described(facade: Facade, fields: dict[str, Any]) -> None:
    status, body, _ = await facade.post(chat(**fields))
    assert status == 200
    check(body, "ChatCompletion")
    for options in ({}, {"stream_options": {"include_usage": True}}):
        data, _ = await facade.stream({**chat(**fields), **options})
        for each in data[:-1]:
            check(json.loads(each), "ChatCompletionChunk")


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"logprobs": 0}, {"logprobs": 2}, {"max_tokens": 1, "echo": True}])
async def test_completions_are_as_described(facade: Facade, fields: dict[str, Any]) -> None:
    for prompt in ("a b", ["a", "b"], [1, 2], [[1], [2]]):
        check(completion(prompt, **fields), "CompletionRequest")
        status, body, _ = await facade.post(completion(prompt, **fields), COMPLETIONS)
        assert status == 200
        check(body, "Completion")
    options: dict[str, Any]
    for options in ({}, {"stream_options": {"include_usage": True}}):
        data, _ = await facade.stream({**completion(**fields), **options}, COMPLETIONS)
        for each in data[:-1]:
            check(json.loads(each), "CompletionChunk")


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/v1/tokenize", {"prompt": "a b"}, "Tokens"),
        ("/v1/tokenize", {"messages": [{"role": "user", "content": "a"}]}, "Tokens"),
        ("/v1/detokenize", {"tokens": [1]}, "Text"),
    ],
)
async def test_tokens_are_as_described(facade: Facade, path: str, body: dict[str, Any], answer: str) -> None:
    status, told, _ = await facade.post({"model": MODEL, **body}, path)
    assert status == 200
    check(told, answer)


@pytest.mark.parametrize("code", [code for code in ErrorCode if code not in NEVER_OF_CHAT])
async def test_what_the_runtime_refuses_is_as_described(facade: Facade, code: ErrorCode) -> None:
    facade.runtime.script = failing(MantlerError(code, "No.", retry_after_s=1.0))
    status, body, response = await facade.post(chat())
    check(body, "Error")
    assert str(status) in statuses(*CHAT)
    described = openapi_document()["paths"][CHAT[0]][CHAT[1]]["responses"][str(status)]
    assert ("Retry-After" in response.headers) == ("headers" in described)
