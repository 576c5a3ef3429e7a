"""Asks an OpenAI-compatible server over HTTP and notes when each piece of the answer comes."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from bench.stream import Ask, Request, Stream, checked

REQUEST_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens."""

    url: str
    """With /v1."""
    key: str
    model: str

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        return {"Authorization": f"Bearer {self.key}"}


def body(request: Request, model: str) -> dict[str, Any]:
    """The JSON of ``request``. ``ignore_eos`` is no field of OpenAI's, but of all the servers measured here."""
    return {
        "model": model,
        "messages": [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}],
        "temperature": 0,
        "max_tokens": request.max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Opens a new connection for each request: not every server announces that it closes an old one."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as opened:
        yield opened


def asker(opened: aiohttp.ClientSession, endpoint: Endpoint) -> Ask:
    """Sends requests to ``endpoint``."""

    async def ask(request: Request, on_first: Callable[[], None]) -> Stream:
        stream = Stream(time.perf_counter())
        url = f"{endpoint.url}/chat/completions"
        try:
            async with opened.post(url, json=body(request, endpoint.model), headers=endpoint.headers) as response:
                if response.status == 200:
                    await read(response.content.iter_any(), stream, on_first)
                else:
                    stream.error = f"HTTP {response.status}"
        except (aiohttp.ClientError, TimeoutError) as error:
            stream.error = type(error).__name__
        stream.ended = time.perf_counter()
        return checked(stream, request)

    return ask


async def read(blocks: AsyncIterable[bytes], stream: Stream, on_first: Callable[[], None]) -> None:
    """Takes an event stream to its end. A piece came when its line was whole.

    The client shares the machine with the server, so it only notes times while the answer comes: JSON is read up to the
    first piece and from then on after the end.
    """
    waiting: list[tuple[float, bytes]] = []
    rest, ended = b"", False
    async for block in blocks:
        now = time.perf_counter()
        if stream.pieces:
            waiting.append((now, block))
            continue
        *lines, rest = (rest + block).split(b"\n")
        ended = _take(lines, now, stream) or ended
        if stream.pieces:
            on_first()
    for came, block in waiting:
        *lines, rest = (rest + block).split(b"\n")
        ended = _take(lines, came, stream) or ended
    if not ended and not stream.error:
        stream.error = "stream cut off"


def _take(lines: Iterable[bytes], came: float, stream: Stream) -> bool:
    """Adds what ``lines`` say to ``stream``; whether they hold the end."""
    ended = False
    for line in lines:
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:"):
            continue
        if data == b"[DONE]":
            ended = True
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            stream.error = "error event"
        elif any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
            stream.pieces.append(came)
        if usage := chunk.get("usage"):
            stream.prompt_tokens, stream.tokens = usage["prompt_tokens"], usage["completion_tokens"]
            stream.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return ended
