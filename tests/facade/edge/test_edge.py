"""Generation and models at the edge, over gRPC and as JSON: the same keys, limits and errors as over REST."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from mantler import messages as m
from mantler.errors import ErrorCode, MantlerError
from mantler.v1 import generation_pb2, model_pb2
from tests.facade.conftest import MODEL
from tests.facade.edge.calls import REQUEST, WAYS, WORDS, as_json, asked, lines_of, over_grpc, text_of
from tests.facade.edge.conftest import Edge
from tests.fake_runtime import Gate, Said, failing


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
        ({"resume": {"delivered": [{"ids": [1]}, {"ids": [2]}]}, "sampling": {"seed": 1}}, "resume.delivered"),
        ({"resume": {"delivered": [{"ids": [1]}]}}, "seed"),
        ({"n": 0}, "n"),
        ({"sampling": {"temperature": -1}}, "temperature"),
        ({"chat": {}}, "messages"),
    ],
)
async def test_bad_fields_are_named(edge: Edge, call: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(MantlerError) as caught:
        await call(edge, **fields)
    assert (caught.value.row.http_status, caught.value.param) == (400, param)


async def test_requests_bear_one_name_everywhere(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "facade.access")
    await edge.new_key(requests_per_minute=5, tokens_per_minute=500)
    call = edge.generation.Generate(asked(requestId="mine"), metadata=edge.metadata)
    async for _ in call:
        pass
    trailers = dict(await call.trailing_metadata())
    assert trailers["x-request-id"] == "mine"
    assert trailers["x-ratelimit-remaining-requests"] == "4"
    assert trailers["x-ratelimit-remaining-tokens"] == "494"
    with pytest.raises(MantlerError):
        await over_grpc(edge, requestId="nothing", model="nope")
    status, _ = await edge.post("GenerationService/Generate", {**REQUEST, "requestId": "json"})
    assert status == 200
    lines = lines_of(caplog)
    assert [(line["request_id"], line["method"], line["status"]) for line in lines] == [
        ("mine", "gRPC", "200"),
        ("nothing", "gRPC", "404"),
        ("json", "POST", "200"),
    ]
    assert {line["path"] for line in lines} == {"/mantler.v1.GenerationService/Generate"}
    used = [(line.get("prompt_tokens"), line.get("completion_tokens")) for line in lines]
    assert used == [("3", "3"), (None, None), ("3", "3")]
    assert all(line["key_id"] and line["model"] for line in lines)


@WAYS
async def test_keys_do_not_push_ahead(edge: Edge, call: Any) -> None:
    with pytest.raises(MantlerError, match="priority: must be between 0 and 100, got -1"):
        await call(edge, priority=-1)
    await call(edge, priority=5)
    assert edge.runtime.requests[-1].priority == 5


@WAYS
async def test_tools_are_called(edge: Edge, call: Any) -> None:
    part = m.ToolCallDelta(0, '{"a"', id="call_1", name="paint")

    async def script(request: m.GenerateRequest) -> AsyncGenerator[Said, None]:
        yield m.Started(request.model, 3)
        yield m.Delta("", (1,), tool_calls=(part,))
        yield m.Delta("", (2,), tool_calls=(m.ToolCallDelta(0, ": 1}"),))
        yield m.Finished(m.FinishReason.TOOL_CALLS, m.Usage(3, 2))

    edge.runtime.script = script
    chat = {**REQUEST["chat"], "tools": [{"name": "paint", "parametersJsonSchema": "{}"}]}  # type: ignore[dict-item]
    events = await call(edge, chat=chat)
    calls = [part for event in events for part in event.delta.tool_calls]
    assert [(part.id, part.name) for part in calls] == [("call_1", "paint"), ("", "")]
    assert "".join(part.arguments for part in calls) == '{"a": 1}'
    assert events[-1].finished.reason == generation_pb2.FINISH_REASON_TOOL_CALLS
    (prompt,) = [request.prompt for request in edge.runtime.requests]
    assert isinstance(prompt, m.ChatPrompt)
    assert [tool.name for tool in prompt.tools] == ["paint"]


async def test_a_model_is_described_without_how_busy_its_machine_is(edge: Edge) -> None:
    listed = await edge.models.ListModels(model_pb2.ListModelsRequest(), metadata=edge.metadata)
    deployment = listed.models[0].deployment
    assert [(field.name, value) for field, value in deployment.ListFields()] == [("max_request_tokens", 8192)]


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
