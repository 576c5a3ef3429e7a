"""A facade whose edge is called over gRPC and as JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from facade.app import running
from mantler.config import FacadeSettings
from mantler.tenancy.store import KeyStore
from mantler.v1 import generation_pb2_grpc, model_pb2_grpc
from tests.facade.conftest import KEY, make_settings
from tests.fake_runtime import FakeRuntime


@dataclass
class Edge:
    """What a test needs to call the edge."""

    url: str
    address: str
    """Of gRPC."""
    http: aiohttp.ClientSession
    channel: grpc.aio.Channel
    runtime: FakeRuntime
    settings: FacadeSettings
    key: str = KEY

    @property
    def generation(self) -> generation_pb2_grpc.GenerationServiceAsyncStub:
        return generation_pb2_grpc.GenerationServiceStub(self.channel)

    @property
    def models(self) -> model_pb2_grpc.ModelServiceAsyncStub:
        return model_pb2_grpc.ModelServiceStub(self.channel)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.key}"),)

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, str]:
        """Status and text of a call as JSON."""
        sent = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **headers}
        data = body if isinstance(body, bytes) else None
        async with self.http.post(
            f"{self.url}/mantler.v1.{path}", json=None if data is not None else body, data=data, headers=sent
        ) as response:
            return response.status, await response.text()

    async def new_key(self, **options: Any) -> None:
        """From now on calls show a new key."""
        async with await KeyStore.open(self.settings.database_url) as keys:
            self.key, _ = await keys.create("test", **options)


@pytest.fixture
async def edge(tmp_path: Path, changes: dict[str, Any]) -> AsyncIterator[Edge]:
    async with FakeRuntime() as runtime:
        settings = make_settings(tmp_path, runtime.address, **changes)
        async with (
            running(settings) as bound,
            aiohttp.ClientSession() as http,
            grpc.aio.insecure_channel(f"127.0.0.1:{bound.grpc_port}") as channel,
        ):
            url, address = f"http://{bound.host}:{bound.port}", f"127.0.0.1:{bound.grpc_port}"
            yield Edge(url, address, http, channel, runtime, settings)
