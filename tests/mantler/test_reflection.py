"""Reflection as ghz and others use it."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mantler.reflection import enable_reflection
from mantler.v1 import generation_pb2

SERVICE = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name


async def ask(**question: str) -> Any:
    """The answer of a server with reflection."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    enable_reflection(server, [SERVICE])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=10)
            await call.write(reflection_pb2.ServerReflectionRequest(**question))
            answer = await call.read()
            await call.done_writing()
            return answer
    finally:
        await server.stop(None)


@pytest.mark.parametrize("symbol", [SERVICE, f"{SERVICE}.Generate", "mantler.v1.GenerateRequest"])
async def test_the_file_of_a_symbol(symbol: str) -> None:
    answer = await ask(file_containing_symbol=symbol)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in answer.file_descriptor_response.file_descriptor_proto
    ]
    assert "mantler/v1/generation.proto" in [file.name for file in files]


async def test_a_symbol_that_nobody_declares() -> None:
    answer = await ask(file_containing_symbol=f"{SERVICE}.Nonsense")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_the_services_are_listed() -> None:
    answer = await ask(list_services="")
    assert [service.name for service in answer.list_services_response.service] == [
        "grpc.reflection.v1alpha.ServerReflection",
        SERVICE,
    ]
