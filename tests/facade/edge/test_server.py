"""The server at the edge, whatever it serves: health, reflection, bounds and the drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from facade.app import running, serve
from mantler.messages import ModelState
from mantler.v1 import generation_pb2, generation_pb2_grpc
from tests.facade.conftest import KEY, MODEL, make_settings
from tests.facade.edge.conftest import Edge
from tests.fake_runtime import FakeRuntime, Gate, model

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
GENERATION = "mantler.v1.GenerationService"


def watched(channel: grpc.aio.Channel, service: str) -> AsyncIterator[int]:
    """The statuses of ``service``."""
    call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))

    async def statuses() -> AsyncIterator[int]:
        async for answer in call:
            yield answer.status

    return statuses()


async def status_of(channel: grpc.aio.Channel, service: str) -> int:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    status: int = answer.status
    return status


async def test_generation_is_healthy_while_a_machine_serves(edge: Edge) -> None:
    statuses = watched(edge.channel, GENERATION)
    async with asyncio.timeout(20):
        assert await anext(statuses) == SERVING
        await edge.runtime.kill()
        assert await anext(statuses) == NOT_SERVING
        for service in ("", "mantler.v1.ModelService", "mantler.v1.MeshService"):
            assert await status_of(edge.channel, service) == SERVING
        await edge.runtime.start()
        assert await anext(statuses) == SERVING


async def test_a_machine_without_a_model_does_not_count(tmp_path: Path) -> None:
    async with FakeRuntime() as runtime:
        runtime.models = {"cold:1b": model("cold:1b", ModelState.STORED)}
        async with (
            running(make_settings(tmp_path, runtime.address)) as bound,
            grpc.aio.insecure_channel(f"127.0.0.1:{bound.grpc_port}") as channel,
        ):
            assert await status_of(channel, GENERATION) == NOT_SERVING


async def test_reflection_lists_what_is_served(edge: Edge) -> None:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    call = reflection_pb2_grpc.ServerReflectionStub(edge.channel).ServerReflectionInfo(iter([asked]))
    (answer,) = [answer async for answer in call]
    names = {service.name for service in answer.list_services_response.service}
    assert {GENERATION, "mantler.v1.ModelService", "grpc.health.v1.Health"} <= names


async def test_calls_are_bounded_over_all_connections(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facade.app.MAX_OTHER_CALLS", 1)
    settings = edge.settings.model_copy(update={"max_connections": 1})
    async with (
        running(settings) as bound,
        grpc.aio.insecure_channel(f"127.0.0.1:{bound.grpc_port}") as channel,
    ):
        watches = [watched(channel, GENERATION) for _ in range(2)]
        assert [await anext(statuses) for statuses in watches] == [SERVING, SERVING]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status_of(channel, GENERATION)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_drain_lets_calls_finish_and_does_not_wait_for_watches(tmp_path: Path) -> None:
    stop = asyncio.Event()
    async with FakeRuntime() as runtime:
        gate = runtime.script = Gate(stop_after=2)
        async with running(make_settings(tmp_path, runtime.address)) as probe:
            port = probe.grpc_port
        settings = make_settings(tmp_path, runtime.address).model_copy(update={"grpc": f"127.0.0.1:{port}"})
        bound: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(serve(settings, stop=stop, on_bound=lambda *_: bound.set_result(None)))
        await bound
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(20):
            statuses = watched(channel, GENERATION)
            assert await anext(statuses) == SERVING
            call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(
                generation_pb2.GenerateRequest(request_id="last", model=MODEL, text="one two three"),
                metadata=(("authorization", f"Bearer {KEY}"),),
            )
            events = aiter(call)
            first = await anext(events)
            await gate.reached.wait()
            stop.set()
            assert await anext(statuses) == NOT_SERVING
            gate.opened.set()
            rest = [event async for event in events]
            assert first.HasField("started")
            assert rest[-1].HasField("finished")
            await server
