"""What aiohttp refuses before any handler is answered like every other error, and the next request is safe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.facade.conftest import Facade, chat, error_of, raw_request

_GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
_POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"

NO_HTTP = {
    "method": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
    "request line": b"GET\r\n\r\n",
    "version": b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
    "long address": b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "long header": _GET + b"Cookie: " + b"a" * 9000 + b"\r\n\r\n",
    "many headers": _GET + b"".join(b"x-%d: y\r\n" % i for i in range(200)) + b"\r\n",
    "header name": _GET + b"a b: c\r\n\r\n",
    "two lengths": _POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length": _POST + b"Content-Length: two\r\n\r\n{}",
    "length and chunks": _POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


@contextlib.asynccontextmanager
async def connected(facade: Facade) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", facade.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of the next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split()[1]), headers, json.loads(await reader.readexactly(int(headers["content-length"])))


@pytest.mark.parametrize("raw", NO_HTTP.values(), ids=NO_HTTP)
async def test_what_is_no_http_is_400_and_the_end_of_the_connection(
    facade: Facade, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(facade) as (reader, writer):
        with caplog.at_level(logging.INFO, "facade.access"):
            writer.write(raw)
            status, headers, body = await answer(reader)
        assert (status, *error_of(body)) == (400, "invalid_request_error", "invalid_request")
        assert ("8190 bytes" in body["error"]["message"]) == (b"a" * 9000 in raw)
        assert headers["content-type"] == "application/json; charset=utf-8"
        assert headers["server"] == "mantler"
        assert headers["x-request-id"].startswith("req_")
        assert [line for line in caplog.messages if headers["x-request-id"] in line and "error=invalid_request" in line]
        assert await reader.read() == b""
    assert (await facade.post(chat()))[0] == 200


async def test_a_body_in_broken_chunks_is_400_and_the_end_of_the_connection(facade: Facade) -> None:
    head = raw_request(None).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    for chunks in (b"zz\r\n{}\r\n0\r\n\r\n", b"2\r\n{}}\r\n0\r\n\r\n"):
        async with connected(facade) as (reader, writer):
            writer.write(head)
            writer.write(chunks)
            status, headers, body = await answer(reader)
            assert (status, error_of(body)[1]) == (400, "invalid_request")
            assert headers["x-request-id"].startswith("req_")
            left = await reader.read()
            assert b"200 OK" not in left
            assert b"text/plain" not in left
    assert not facade.runtime.requests


@pytest.mark.parametrize("path", ["/health", "/nowhere"])
async def test_an_unknown_expectation_is_400_and_the_connection_lives_on(facade: Facade, path: str) -> None:
    async with connected(facade) as (reader, writer):
        asked = f"GET {path} HTTP/1.1\r\nHost: x\r\nx-request-id: mine\r\nExpect: tea\r\n\r\n".encode()
        writer.write(asked + raw_request(chat()))
        status, headers, body = await answer(reader)
        assert (status, *error_of(body)) == (400, "invalid_request_error", "invalid_request")
        assert headers["x-request-id"] == "mine"
        assert headers["access-control-allow-origin"] == "*"
        assert (await answer(reader))[0] == 200


async def test_a_known_expectation_is_met(facade: Facade) -> None:
    async with connected(facade) as (reader, writer):
        head, _, sent = raw_request(chat()).partition(b"\r\n\r\n")
        writer.write(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(sent)
        assert (await answer(reader))[0] == 200


async def test_what_came_before_it_on_the_connection_is_answered(facade: Facade) -> None:
    async with connected(facade) as (reader, writer):
        writer.write(raw_request(chat()))
        assert (await answer(reader))[0] == 200
        writer.write(b"nonsense\r\n\r\n")
        status, _, body = await answer(reader)
        assert (status, error_of(body)[1]) == (400, "invalid_request")
        assert await reader.read() == b""
