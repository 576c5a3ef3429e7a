"""The clients of the soak test: they make calls, misbehave as told, and count how each call ended."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from bench.client import Endpoint
from bench.soak_calls import Call

CALL_TIMEOUT_S = 180.0
SLOW_LINES = 100
"""A slow reader hurries after so many lines."""
SLOW_BUFFER_BYTES = 4096
"""Of a slow reader's socket, so that the server notices that it is slow."""
KEPT_ERRORS = 20
OK, REFUSED, CANCELLED, ERROR = "ok", "refused", "cancelled", "error"


@dataclass(slots=True)
class Tally:
    """How calls ended."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """Kind, then outcome."""
    tokens: int = 0
    examples: list[str] = field(default_factory=list)
    """The first errors."""
    texts: dict[str, str] = field(default_factory=dict)
    """The first answer to each canary."""

    def add(self, kind: str, outcome: str) -> None:
        self.counts.setdefault(kind, Counter())[outcome] += 1

    def error(self, kind: str, why: str) -> None:
        self.add(kind, ERROR)
        if len(self.examples) < KEPT_ERRORS:
            self.examples.append(f"{kind}: {why}")

    def total(self, outcome: str) -> int:
        """Over all kinds."""
        return sum(counter[outcome] for counter in self.counts.values())


class BadAnswerError(Exception):
    """The server answered with what it must not. The message says what."""


@dataclass(slots=True)
class Client:
    """Makes calls and tallies them."""

    endpoint: Endpoint
    tally: Tally
    opened: aiohttp.ClientSession
    slow: aiohttp.ClientSession

    async def call(self, call: Call) -> str:
        """Makes one call. Returns its outcome."""
        try:
            async with asyncio.timeout(call.cancel_after_s):
                outcome = await self._answered(call)
        except TimeoutError:
            # The session's own limit raises a TimeoutError as well, but far later than any client goes away.
            if call.cancel_after_s is None:
                self.tally.error(call.kind, f"no whole answer within {CALL_TIMEOUT_S:g} s")
                return ERROR
            outcome = CANCELLED
        except (aiohttp.ClientError, BadAnswerError) as error:
            self.tally.error(call.kind, f"{type(error).__name__}: {error}")
            return ERROR
        self.tally.add(call.kind, outcome)
        return outcome

    async def _answered(self, call: Call) -> str:
        session = self.slow if call.pause_s else self.opened
        url = f"{self.endpoint.url}/chat/completions"
        async with session.post(url, json=call.body, headers=self.endpoint.headers) as response:
            if response.status == 429:
                return REFUSED
            if response.status != 200:
                raise BadAnswerError(f"HTTP {response.status}")
            if call.body.get("stream"):
                choices, tokens = await events(response.content, call.pause_s)
            else:
                value = await response.json()
                choices = [(choice["message"]["content"], choice["finish_reason"]) for choice in value["choices"]]
                tokens = value["usage"]["completion_tokens"]
        self._check_tokens(call, [reason for _, reason in choices], tokens)
        for text, reason in choices:
            self._check_text(call, text, reason)
        self.tally.tokens += tokens
        return OK

    def _check_tokens(self, call: Call, reasons: list[str], tokens: int) -> None:
        limit, number = call.body["max_tokens"], call.body.get("n", 1)
        cut = reasons.count("length")
        if len(reasons) != number or not {*reasons} <= {"stop", "length"}:
            raise BadAnswerError(f"{number} choices ended with {reasons}")
        if not cut * limit <= tokens <= number * limit or (cut == number and tokens != cut * limit):
            raise BadAnswerError(f"{tokens} tokens of {number} times {limit} and finish reasons {reasons}")

    def _check_text(self, call: Call, text: str, reason: str) -> None:
        if found := [stop for stop in call.body.get("stop", ()) if stop in text]:
            raise BadAnswerError(f"the text holds the stop string {found[0]!r}")
        if call.keys and reason == "stop" and {*json.loads(text)} != call.keys:
            raise BadAnswerError("the JSON does not follow its schema")
        if call.canary and self.tally.texts.setdefault(call.canary, text) != text:
            raise BadAnswerError("the same greedy request got another text than before")


@asynccontextmanager
async def client(endpoint: Endpoint, tally: Tally) -> AsyncIterator[Client]:
    """A client with its connections."""
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
    connectors = aiohttp.TCPConnector(limit=0), aiohttp.TCPConnector(limit=0, socket_factory=_small_socket)
    async with (
        aiohttp.ClientSession(connector=connectors[0], timeout=timeout) as opened,
        aiohttp.ClientSession(connector=connectors[1], timeout=timeout, read_bufsize=SLOW_BUFFER_BYTES) as slow,
    ):
        yield Client(endpoint, tally, opened, slow)


async def events(lines: AsyncIterable[bytes], pause_s: float) -> tuple[list[tuple[str, str]], int]:
    """Each choice's text and finish reason, and the token count of an event stream. Raises :class:`BadAnswerError`."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    tokens, ended, read = -1, False, 0
    async for line in lines:
        read += 1
        if pause_s and read <= SLOW_LINES:
            await asyncio.sleep(pause_s)
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            ended = True
            continue
        chunk: dict[str, Any] = json.loads(data)
        if "error" in chunk:
            raise BadAnswerError(f"an error event: {chunk['error'].get('code')}")
        for choice in chunk["choices"]:
            index = choice["index"]
            texts[index] = texts.get(index, "") + (choice["delta"].get("content") or "")
            if choice["finish_reason"]:
                reasons[index] = choice["finish_reason"]
        if chunk.get("usage"):
            tokens = chunk["usage"]["completion_tokens"]
    if not ended:
        raise BadAnswerError("the stream was cut off")
    return [(texts[index], reasons.get(index, "none")) for index in sorted(texts)], tokens


def _small_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
    return made
