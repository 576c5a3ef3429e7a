"""A facade on a real port in front of a fake runtime."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from facade.app import running
from facade.limits import Limiters
from mantler.config import FacadeSettings
from mantler.tenancy.limits import RateLimiter
from mantler.tenancy.store import KeyStore
from tests.facade.described import check_answer, check_event
from tests.fake_runtime import FakeRuntime

MODEL = "smollm2:135m"
KEY = "mk_live_" + "t" * 32
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
AUTH = {"Authorization": f"Bearer {KEY}"}


def make_settings(home: Path, runtime: str, **changes: Any) -> FacadeSettings:
    return FacadeSettings(
        home=home, http="127.0.0.1:0", grpc="127.0.0.1:0", runtime=runtime, bootstrap_key=KEY, **changes
    )


def chat(text: str = "one two three", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


def completion(prompt: Any = "one two three", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, **fields}


def error_of(body: Any) -> tuple[str, str]:
    """Type and code of an error's JSON, which holds nothing else."""
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]["type"], body["error"]["code"]


def raw_request(body: object, path: str = CHAT, *, method: str = "POST") -> bytes:
    """A request as it travels, for tests that speak HTTP themselves."""
    data = json.dumps(body).encode() if body is not None else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


@dataclass
class Facade:
    """What a test needs to talk to the facade under test. Each answer is held against the API's own description."""

    url: str
    port: int
    http: aiohttp.ClientSession
    runtime: FakeRuntime
    settings: FacadeSettings
    headers: dict[str, str] = field(default_factory=lambda: dict(AUTH))

    async def post(self, body: Any, path: str = CHAT, **options: Any) -> tuple[int, Any, aiohttp.ClientResponse]:
        """Status, JSON and response of a POST, of a chat completion where nothing else is said."""
        options.setdefault("headers", self.headers)
        sent = {"data": io.BytesIO(body)} if isinstance(body, bytes) else {"json": body}
        if isinstance(body, bytes):
            options["headers"] = {"Content-Type": "application/json", **options["headers"]}
        async with self.http.post(f"{self.url}{path}", **sent, **options) as response:
            answer = await response.json()
            check_answer("POST", path, response.status, answer)
            return response.status, answer, response

    async def stream(self, body: dict[str, Any], path: str = CHAT) -> tuple[list[str], aiohttp.ClientResponse]:
        """The data of each event of a stream, and the response."""
        return await self.stream_with(body, self.headers, path)

    async def stream_with(
        self, body: dict[str, Any], headers: dict[str, str], path: str = CHAT
    ) -> tuple[list[str], aiohttp.ClientResponse]:
        """The same with other headers."""
        sent = {"stream": True, **body}
        async with self.http.post(f"{self.url}{path}", json=sent, headers=headers) as response:
            assert response.status == 200, await response.text()
            sent_events = events(await response.text())
            for data in sent_events:
                if data != "[DONE]":
                    check_event(path, json.loads(data))
            return sent_events, response

    async def get(self, path: str, **options: Any) -> tuple[int, Any, aiohttp.ClientResponse]:
        """Status, JSON and response of a GET."""
        options.setdefault("headers", self.headers)
        async with self.http.get(f"{self.url}{path}", **options) as response:
            answer = await response.json()
            if path != "/openapi.json":
                check_answer("GET", path, response.status, answer)
            return response.status, answer, response

    async def new_key(self, **options: Any) -> tuple[dict[str, str], str]:
        """Headers with a new key, and the key's id."""
        async with await KeyStore.open(self.settings.database_url) as keys:
            key, record = await keys.create("test", **options)
        return {"Authorization": f"Bearer {key}"}, record.id


def events(text: str) -> list[str]:
    """The data of the events in ``text``; every event must be whole."""
    assert text.endswith("\n\n")
    blocks = text.removesuffix("\n\n").split("\n\n")
    return [block.removeprefix("data: ") for block in blocks if block != ": ping"]


@pytest.fixture
def changes() -> dict[str, Any]:
    """Settings that a test changes: override or parametrize."""
    return {}


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns

    def wait(self, seconds: float) -> None:
        """Moves on."""
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the limits of keys go by in a facade that is asked for after it."""
    clock = Clock()
    limiters = Limiters(RateLimiter(clock), RateLimiter(clock))
    monkeypatch.setattr("facade.app.Limiters", lambda: limiters)
    return clock


@pytest.fixture
async def facade(tmp_path: Path, changes: dict[str, Any]) -> AsyncIterator[Facade]:
    async with FakeRuntime() as runtime:
        settings = make_settings(tmp_path, runtime.address, **changes)
        async with running(settings) as (host, port, _), aiohttp.ClientSession() as http:
            yield Facade(f"http://{host}:{port}", port, http, runtime, settings)
    assert not [task for task in asyncio.all_tasks() if "_ping_in_silence" in repr(task)]
