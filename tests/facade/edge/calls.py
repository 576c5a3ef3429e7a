"""Calls of the edge over gRPC and as JSON."""

from __future__ import annotations

import json
import re
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from mantler.errors import ErrorCode, MantlerError
from mantler.grpc_errors import from_rpc_error
from mantler.v1 import generation_pb2
from tests.facade.conftest import MODEL
from tests.facade.edge.conftest import Edge

WORDS = "one two three"
REQUEST = {"model": MODEL, "chat": {"messages": [{"role": "ROLE_USER", "content": [{"text": WORDS}]}]}}


def asked(**fields: Any) -> generation_pb2.GenerateRequest:
    return json_format.ParseDict({**REQUEST, **fields}, generation_pb2.GenerateRequest())


async def over_grpc(edge: Edge, **fields: Any) -> list[generation_pb2.GenerateResponse]:
    """The events. Raises ``MantlerError``."""
    try:
        return [event async for event in edge.generation.Generate(asked(**fields), metadata=edge.metadata)]
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


async def as_json(edge: Edge, **fields: Any) -> list[generation_pb2.GenerateResponse]:
    """The same as JSON."""
    status, text = await edge.post("GenerationService/Generate", {**REQUEST, **fields})
    if status != 200:
        error = json.loads(text)["error"]
        raise MantlerError(ErrorCode(error["code"]), error["message"], param=error["param"])
    blocks = text.removesuffix("\n\n").split("\n\n")
    if blocks[-1].startswith("event: error\n"):
        error = json.loads(blocks[-1].removeprefix("event: error\ndata: "))["error"]
        raise MantlerError(ErrorCode(error["code"]), error["message"], param=error["param"])
    return [json_format.Parse(block.removeprefix("data: "), generation_pb2.GenerateResponse()) for block in blocks]


WAYS = pytest.mark.parametrize("call", [over_grpc, as_json], ids=["gRPC", "JSON"])


def text_of(events: list[generation_pb2.GenerateResponse]) -> str:
    return "".join(event.delta.text for event in events)


def lines_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    """The lines of the log of requests, but those about models."""
    messages = [record.getMessage() for record in caplog.records if record.name == "facade.access"]
    lines = [dict(re.findall(r"(\w+)=(\S+)", message)) for message in messages]
    return [line for line in lines if "ModelService" not in line["path"]]
