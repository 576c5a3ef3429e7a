"""Generation and models at the edge, over gRPC and as JSON: the same keys, limits and errors as over REST."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from mantler import messages as m
from mantler.errors import ErrorCode, MantlerError
from mantler.grpc_errors import from_rpc_error
from mantler.v1 import generation_pb2, model_pb2
from tests.facade.conftest import MODEL
from tests.facade.edge.conftest import Edge
from tests.fake_runtime import Gate, Said, failing

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


@WAYS
async def test_generation_streams(edge: Edge, call: Any) -> None:
    events = await call(edge)
    assert [event.seq for event in events] == list(range(len(events)))
    assert text_of(events) == WORDS
    assert events[-1].finished.usage.completion_tokens == 3


@WAYS
async def test_choices_and_tokens(edge: Edge, call: Any) -> None:
    events = await call(edge, n=3, stop={"maxTokens": 2})
    assert sorted(event.index for event in events if event.HasField("finished")) == [0, 1, 2]
    assert text_of(events) == "oneoneone two two two"


async def test_all_ways_say_the_same(edge: Edge) -> None:
    assert await over_grpc(edge, n=2) == await as_json(edge, n=2)


async def test_what_the_machine_is_asked(edge: Edge) -> None:
    await over_grpc(edge, requestId="mine")
    await as_json(edge)
    first, second = edge.runtime.requests
    assert first.request_id == "mine"
    assert second.request_id.startswith("req_")
    assert first.cache_salt == second.cache_salt != None  # noqa: E711
    await edge.new_key()
    await over_grpc(edge)
    assert edge.runtime.requests[-1].cache_salt not in (None, first.cache_salt)


@WAYS
@pytest.mark.parametrize(
    ("key", "code"),
    [("", ErrorCode.INVALID_API_KEY), ("mk_live_" + "x" * 32, ErrorCode.INVALID_API_KEY)],
    ids=["none", "unknown"],
)
async def test_without_a_key_nothing_is_served(edge: Edge, call: Any, key: str, code: ErrorCode) -> None:
    edge.key = key
    with pytest.raises(MantlerError) as caught:
        await call(edge)
    assert caught.value.code is code
    assert edge.runtime.requests == []


@WAYS
async def test_a_key_may_use_its_models_only(edge: Edge, call: Any) -> None:
    await edge.new_key(allowed_models=("org/other:tag",))
    with pytest.raises(MantlerError) as caught:
        await call(edge)
    assert caught.value.code is ErrorCode.MODEL_NOT_ALLOWED
    assert text_of(await call(edge, model="org/other:tag")) == WORDS


@WAYS
async def test_limits_hold_and_are_given_back(edge: Edge, call: Any) -> None:
    await edge.new_key(requests_per_minute=2)
    edge.runtime.script = failing(MantlerError(ErrorCode.QUEUE_FULL, "The queue is full.", retry_after_s=1.0))
    for _ in range(4):
        with pytest.raises(MantlerError) as caught:
            await call(edge)
        assert caught.value.code is ErrorCode.QUEUE_FULL
    edge.runtime.script = Gate(10**6)
    await call(edge)
    await call(edge)
    with pytest.raises(MantlerError) as caught:
        await call(edge)
    assert caught.value.code is ErrorCode.RATE_LIMIT_EXCEEDED


async def test_a_refusal_says_when_to_come_again(edge: Edge) -> None:
    await edge.new_key(tokens_per_minute=10)
    await over_grpc(edge, stop={"maxTokens": 3})
    with pytest.raises(MantlerError) as caught:
        await over_grpc(edge, stop={"maxTokens": 9})
    assert caught.value.code is ErrorCode.RATE_LIMIT_EXCEEDED
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 0


@WAYS
async def test_a_failure_in_the_middle_is_the_last_that_comes(edge: Edge, call: Any) -> None:
    started = m.Started(MODEL, prompt_tokens=3, fingerprint="fp")
    broken = MantlerError(ErrorCode.QUEUE_FULL, "No room.", retry_after_s=1.0)
    edge.runtime.script = failing(broken, (started, m.Delta("one", (1,))))
    with pytest.raises(MantlerError, match="No room"):
        await call(edge)


@WAYS
async def test_an_unknown_model_names_the_known_ones(edge: Edge, call: Any) -> None:
    with pytest.raises(MantlerError, match=r"'nope' is not served here\. This API key may use org/other:tag, smollm2"):
        await call(edge, model="nope")


@WAYS
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"resume": {"delivered": [{"ids": [1]}]}}, "resume"),
        ({"n": 0}, "n"),
        ({"sampling": {"temperature": -1}}, "temperature"),
        ({"chat": {}}, "messages"),
    ],
)
async def test_bad_fields_are_named(edge: Edge, call: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(MantlerError) as caught:
        await call(edge, **fields)
    assert (caught.value.row.http_status, caught.value.param) == (400, param)


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


async def test_models_and_tokens(edge: Edge) -> None:
    listed = await edge.models.ListModels(model_pb2.ListModelsRequest(), metadata=edge.metadata)
    assert [model.id for model in listed.models] == ["org/other:tag", MODEL]
    status, text = await edge.post("ModelService/ListModels", {})
    assert status == 200
    assert json_format.Parse(text, model_pb2.ListModelsResponse()) == listed
    status, text = await edge.post("ModelService/GetModel", {"model": MODEL})
    assert json.loads(text)["model"]["id"] == MODEL
    status, text = await edge.post("GenerationService/CountTokens", {"model": MODEL, "text": WORDS})
    assert json.loads(text)["tokens"] == 3
    status, text = await edge.post("GenerationService/Detokenize", {"model": MODEL, "tokenIds": [1, 2]})
    assert json.loads(text) == {"text": "t1 t2"}


async def test_keys_do_not_load_models(edge: Edge) -> None:
    status, text = await edge.post("ModelService/LoadModel", {"model": MODEL})
    assert status == 404
    assert "Operators use AdminService.DeployModel." in text
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.models.UnloadModel(model_pb2.UnloadModelRequest(model=MODEL), metadata=edge.metadata)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_cancelled_call_frees_the_machine(edge: Edge) -> None:
    gate = Gate(2)
    edge.runtime.script = gate
    call = edge.generation.Generate(asked(), metadata=edge.metadata)
    await call.read()
    await gate.reached.wait()
    call.cancel()
    await edge.runtime.idle()
    assert edge.runtime.cancelled == 1


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
