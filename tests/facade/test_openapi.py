"""The document that describes the API: valid, in step with what is served, and true of the answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator

from facade.docs_page import docs_page
from facade.field_schemas import RANGES
from facade.openapi import openapi_document
from mantler.errors import ErrorCode, MantlerError
from tests.facade.conftest import Facade, chat, completion
from tests.facade.described import check, check_answer, check_event
from tests.fake_runtime import failing

CHAT = ("/v1/chat/completions", "post")
NEVER_OF_CHAT = {
    ErrorCode.ROUTE_NOT_FOUND,
    ErrorCode.METHOD_NOT_ALLOWED,
    ErrorCode.CANCELLED,
    ErrorCode.MACHINE_EXISTS,
}


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


@pytest.mark.parametrize("prompt", ["a b", ["a", "b"], [1, 2], [[1], [2]]])
def test_prompts_of_every_kind_are_described(prompt: Any) -> None:
    check(completion(prompt, logprobs=5, stop=["x"], logit_bias={"1": 5}), "CompletionRequest")


def test_answers_that_are_not_described_are_noticed() -> None:
    error = {"error": {"message": "No.", "type": "not_found_error", "param": None, "code": "model_not_found"}}
    check_answer("GET", "/v1/models/a/b", 404, error)
    check_event("/v1/completions", error)
    with pytest.raises(AssertionError):
        check_answer("GET", "/v1/models/a/b", 418, error)
    with pytest.raises(ValidationError):
        check_answer("GET", "/v1/models/a/b", 200, {"id": "a/b", "object": "model", "created": 1})
    with pytest.raises(ValidationError):
        check_event("/v1/completions", {"choices": []})


@pytest.mark.parametrize("code", [code for code in ErrorCode if code not in NEVER_OF_CHAT])
async def test_what_the_runtime_refuses_is_as_described(facade: Facade, code: ErrorCode) -> None:
    facade.runtime.script = failing(MantlerError(code, "No.", retry_after_s=1.0))
    status, _, response = await facade.post(chat())
    described = openapi_document()["paths"][CHAT[0]][CHAT[1]]["responses"][str(status)]
    assert ("Retry-After" in response.headers) == ("headers" in described)
