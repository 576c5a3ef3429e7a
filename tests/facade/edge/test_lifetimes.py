"""Deadlines, callers that leave, and the drain, over gRPC and as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from facade.app import running
from mantler import messages as m
from mantler.errors import ErrorCode, MantlerError
from tests.facade.conftest import MODEL, Clock, make_settings
from tests.facade.edge.calls import REQUEST, WAYS, WORDS, asked, lines_of, over_grpc
from tests.facade.edge.conftest import Edge
from tests.fake_runtime import FakeRuntime, Gate, Said


async def test_the_line_of_a_deadline_says_so(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "facade.access")
    edge.runtime.script = Gate(2)
    with pytest.raises(grpc.aio.AioRpcError):
        async for _ in edge.generation.Generate(asked(), metadata=edge.metadata, timeout=0.2):
            pass
    await edge.runtime.idle()
    async with asyncio.timeout(5):
        while not lines_of(caplog):  # the client knows first
            await edge.post("ModelService/ListModels", {})
    assert lines_of(caplog)[0]["status"] == "504"


async def test_a_body_that_does_not_come_ends_at_the_deadline(edge: Edge) -> None:
    async def never() -> AsyncGenerator[bytes, None]:
        yield b"{"
        await asyncio.Event().wait()

    headers = {"Authorization": f"Bearer {edge.key}", "Content-Type": "application/json", "Grpc-Timeout": "200m"}
    url = f"{edge.url}/mantler.v1.GenerationService/Generate"
    async with edge.http.post(url, data=never(), headers=headers) as response:
        assert response.status == 504


async def test_a_cancelled_call_frees_the_machine(edge: Edge) -> None:
    gate = Gate(2)
    edge.runtime.script = gate
    call = edge.generation.Generate(asked(), metadata=edge.metadata)
    await call.read()
    await gate.reached.wait()
    call.cancel()
    await edge.runtime.idle()
    assert edge.runtime.cancelled == 1


async def test_a_cancelled_call_is_charged_what_it_used(clock: Clock, edge: Edge) -> None:
    async def refused() -> ErrorCode | None:
        try:
            await over_grpc(edge, stop={"maxTokens": 90})
        except MantlerError as error:
            return error.code
        return None

    await edge.new_key(tokens_per_minute=100)
    gate = edge.runtime.script = Gate(2)
    call = edge.generation.Generate(asked(stop={"maxTokens": 90}), metadata=edge.metadata)
    await call.read()
    await gate.reached.wait()
    assert await refused() is ErrorCode.RATE_LIMIT_EXCEEDED
    call.cancel()
    await edge.runtime.idle()
    edge.runtime.script = Gate(10**6)
    async with asyncio.timeout(5):
        while (code := await refused()) is not None:  # the machine is idle a moment before the reservation is closed
            assert code is ErrorCode.RATE_LIMIT_EXCEEDED


async def test_a_client_of_json_that_leaves_frees_the_machine(edge: Edge) -> None:
    gate = edge.runtime.script = Gate(2)
    headers = {"Authorization": f"Bearer {edge.key}"}
    url = f"{edge.url}/mantler.v1.GenerationService/Generate"
    async with edge.http.post(url, json=REQUEST, headers=headers) as response:
        await response.content.readuntil(b"\n\n")
        await gate.reached.wait()
        response.close()
    await asyncio.wait_for(edge.runtime.idle(), 5)
    assert edge.runtime.cancelled == 1


@pytest.mark.parametrize("changes", [{"ping_interval_s": 0.05}])
async def test_silences_of_json_get_comments(edge: Edge) -> None:
    gate = edge.runtime.script = Gate(2)
    headers = {"Authorization": f"Bearer {edge.key}"}
    url = f"{edge.url}/mantler.v1.GenerationService/Generate"
    async with edge.http.post(url, json=REQUEST, headers=headers) as response:
        while await response.content.readuntil(b"\n\n") != b": ping\n\n":
            pass
        gate.opened.set()
        text = await response.text()
    assert '"finished"' in text


@pytest.mark.parametrize("changes", [{"drain_timeout_s": 0.1}])
@WAYS
async def test_the_drain_is_bounded(tmp_path: Path, changes: dict[str, Any], call: Any) -> None:
    async with FakeRuntime() as runtime, aiohttp.ClientSession() as http, contextlib.AsyncExitStack() as stack:
        gate = runtime.script = Gate(2)
        settings = make_settings(tmp_path, runtime.address, **changes)
        facade = contextlib.AsyncExitStack()
        bound = await facade.enter_async_context(running(settings))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{bound.grpc_port}"))
        edge = Edge(f"http://{bound.host}:{bound.port}", "", http, channel, runtime, settings)
        asking = asyncio.create_task(call(edge))
        await gate.reached.wait()
        await asyncio.wait_for(facade.aclose(), 10)
        with pytest.raises(MantlerError) as caught:
            await asking
        assert caught.value.code is ErrorCode.RUNTIME_UNAVAILABLE


async def test_deadlines_travel_on(edge: Edge) -> None:
    gate = Gate(2)
    edge.runtime.script = gate
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in edge.generation.Generate(asked(), metadata=edge.metadata, timeout=0.3):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await edge.runtime.idle()
    status, text = await edge.post("GenerationService/Generate", REQUEST, **{"Grpc-Timeout": "300m"})
    assert status == 200
    assert '"deadline_exceeded"' in text
    await edge.runtime.idle()
    for bad in ("0S", "5", "123456789S", "5s"):
        status, text = await edge.post("GenerationService/Generate", REQUEST, **{"Grpc-Timeout": bad})
        assert (status, json.loads(text)["error"]["param"]) == (400, "Grpc-Timeout")


async def test_rest_has_the_same_deadline(edge: Edge) -> None:
    async def silent(_: m.GenerateRequest) -> AsyncGenerator[Said, None]:
        await asyncio.Event().wait()
        yield m.Delta("never")

    edge.runtime.script = silent
    headers = {"Authorization": f"Bearer {edge.key}", "Grpc-Timeout": "200m"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": WORDS}]}
    async with edge.http.post(f"{edge.url}/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status == 504
    await edge.runtime.idle()
