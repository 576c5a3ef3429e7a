"""Requests that a stranger makes of the API's description, by Schemathesis: right ones and wrong ones.

Whatever comes, the answer has a status and a shape that the description knows, and none says that the server failed.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from facade.app import running
from facade.openapi import openapi_document
from tests.facade.conftest import AUTH, make_settings
from tests.facade.described import check_answer
from tests.fake_runtime import FakeRuntime

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPENAIS = Path(__file__).parents[3] / "shared" / "spec" / "openai_chat_subset.json"


def or_null(schema: Any) -> Any:
    """``schema`` with OpenAPI 3.0's mark ``nullable`` as OpenAPI 3.1 has it, which OpenAI's document claims to be."""
    if isinstance(schema, list):
        return [or_null(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: or_null(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [inner, {"type": "null"}]} if schema.get("nullable") is True else inner


def openais_description() -> dict[str, Any]:
    """The addresses that both have."""
    document: dict[str, Any] = or_null(json.loads(OPENAIS.read_text()))
    document["paths"] = {f"/v1{path}": methods for path, methods in document["paths"].items() if path != "/embeddings"}
    return document


BOUNDED = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
TIMEOUT_S = 20

ours = schemathesis.openapi.from_dict(openapi_document())
openais = schemathesis.openapi.from_dict(openais_description() if OPENAIS.exists() else openapi_document())


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a facade in a thread of its own: Schemathesis' client blocks."""
    bound: list[str] = []
    ready = threading.Event()
    ended = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve(home: Path) -> None:
        async with FakeRuntime() as runtime, running(make_settings(home, runtime.address)) as (host, port, _):
            bound.append(f"http://{host}:{port}")
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve(tmp_path_factory.mktemp("fuzz"))])
    thread.start()
    assert ready.wait(10)
    yield bound[0]
    loop.call_soon_threadsafe(ended.set)
    thread.join()
    loop.close()


@ours.parametrize()
@BOUNDED
def test_our_description(case: schemathesis.Case[Any], url: str) -> None:
    case.call_and_validate(base_url=url, headers=AUTH, checks=CHECKS, timeout=TIMEOUT_S)


@pytest.mark.skipif(not OPENAIS.exists(), reason="OpenAI's description does not lie beside this checkout")
@openais.parametrize()
@BOUNDED
def test_openais_description(case: schemathesis.Case[Any], url: str) -> None:
    """Of errors it describes one status, so these are held against ours."""
    response = case.call(base_url=url, headers=AUTH, timeout=TIMEOUT_S)
    assert response.status_code < 500
    if not response.content:
        assert case.method in ("HEAD", "OPTIONS")
    elif response.status_code == 200:
        case.validate_response(response, checks=[content_type_conformance, response_schema_conformance])
    else:
        check_answer(case.method, case.formatted_path, response.status_code, response.json())
