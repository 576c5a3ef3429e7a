"""Bodies and addresses of JSON over HTTP at the edge."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.facade.conftest import MODEL
from tests.facade.edge.conftest import Edge


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"\xff", None),
        (b"[]", None),
        (b'{"nope": 1}', "nope"),
        (b'{"chat": {"messages": [{"rolle": 1}]}}', "chat.messages[0].rolle"),
        (b'{"n": "many"}', "n"),
        (b'{"n": 1.5}', "n"),
        (b'{"sampling": {"temperature": "x"}}', "sampling.temperature"),
        (b'{"chat": {"messages": [{"role": "KING"}]}}', "chat.messages[0].role"),
        (b'{"chat": {"messages": [{"content": "x"}]}}', "chat.messages[0].content"),
        (b"[" * 10_000, None),
    ],
)
async def test_what_is_no_request_is_refused(edge: Edge, body: bytes, param: str | None) -> None:
    status, text = await edge.post("GenerationService/Generate", body)
    error = json.loads(text)["error"]
    assert (status, error["code"], error["param"]) == (400, "invalid_request", param)


async def test_a_body_is_not_read_for_strangers(edge: Edge) -> None:
    edge.key = ""
    status, _ = await edge.post("GenerationService/Generate", b"{")
    assert status == 401


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "GenerationService/Generate", 405),
        ("POST", "GenerationService/Nothing", 404),
        ("POST", "NoService/Generate", 404),
        ("POST", "MeshService/Join", 404),
    ],
)
async def test_other_addresses_do_not_exist(edge: Edge, method: str, path: str, status: int) -> None:
    async with edge.http.request(method, f"{edge.url}/mantler.v1.{path}") as response:
        assert response.status == status
        assert "error" in await response.json()


async def test_long_bodies_are_read_beside_the_streams(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facade.edge.transcoding.MAX_BYTES", 2**17)
    text = " ".join(["word"] * 20_000)
    status, answer = await edge.post("GenerationService/CountTokens", {"model": MODEL, "text": text})
    assert (status, json.loads(answer)["tokens"]) == (200, 20_000)
    status, answer = await edge.post("GenerationService/CountTokens", {"model": MODEL, "text": "x" * 2**17})
    assert (status, json.loads(answer)["error"]["code"]) == (413, "request_too_large")
    packed = gzip.compress(json.dumps({"model": MODEL, "text": "x" * 2**17}).encode())
    headers = {"Content-Encoding": "gzip"}
    status, answer = await edge.post("GenerationService/CountTokens", packed, **headers)
    assert (status, json.loads(answer)["error"]["code"]) == (413, "request_too_large")
