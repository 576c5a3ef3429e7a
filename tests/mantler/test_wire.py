"""Plain values survive the wire, and what they cannot say is refused by name."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import AioRpcError, Metadata
from hypothesis import given
from hypothesis import strategies as st

from mantler import messages as m
from mantler import wire
from mantler.errors import TABLE, ErrorCode, MantlerError
from mantler.grpc_errors import DETAILS_KEY, from_rpc_error, status_code, to_status
from mantler.mesh.machine import LoadReport, MachineId, ModelLoad
from mantler.mesh.status import MachineStatus
from mantler.messages import NamedTool, Tool, ToolCallDelta, ToolChoice, ToolChoiceMode
from mantler.v1 import admin_pb2, chat_pb2, generation_pb2

texts = st.text(max_size=20)
uint32 = st.integers(0, 2**32 - 1)
counts = st.integers(0, 2**31 - 1)


def float32(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32)


turns = st.builds(m.ChatMessage, st.sampled_from(m.Role), st.none() | texts, st.none() | texts)
prompts = st.one_of(
    st.lists(turns, min_size=1, max_size=4).map(lambda made: m.ChatPrompt(tuple(made))),
    texts.map(m.TextPrompt),
    st.lists(uint32, min_size=1, max_size=5).map(lambda ids: m.TokenPrompt(tuple(ids))),
)
sampling = st.builds(
    m.SamplingParams,
    temperature=float32(0, 2),
    top_p=float32(0.001953125, 1),
    top_k=counts,
    min_p=float32(0, 1),
    seed=st.none() | st.integers(0, 2**64 - 1),
    presence_penalty=float32(-2, 2),
    frequency_penalty=float32(-2, 2),
    repetition_penalty=float32(0.001953125, 10),
    logit_bias=st.dictionaries(uint32, float32(-100, 100), max_size=5).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
)
stops = st.builds(
    m.StopParams,
    max_tokens=st.none() | st.just(2**31 - 1),
    min_tokens=counts,
    stop_strings=st.lists(st.text(min_size=1, max_size=9), max_size=16).map(tuple),
    stop_token_ids=st.lists(uint32, max_size=5).map(tuple),
    ignore_eos=st.booleans(),
)
short_texts = st.text(min_size=1, max_size=9)
constraints = st.one_of(
    st.just(m.JsonObjectConstraint()),
    short_texts.map(m.JsonSchemaConstraint),
    short_texts.map(m.RegexConstraint),
    short_texts.map(m.GrammarConstraint),
    st.lists(short_texts, min_size=1, max_size=4).map(lambda values: m.ChoiceConstraint(tuple(values))),
)
ids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=128)
requests = st.builds(
    m.GenerateRequest,
    ids,
    st.text(min_size=1, max_size=9),
    prompts,
    sampling,
    stops,
    logprobs=st.none() | st.builds(m.LogprobsParams, st.integers(0, 20)),
    n=st.integers(1, 128),
    priority=st.integers(-100, 100),
    cache_salt=st.none() | st.text(min_size=1, max_size=9),
    constraint=st.none() | constraints,
)

usages = st.builds(m.Usage, counts, counts, counts)
candidates = st.builds(m.TokenCandidate, uint32, st.binary(max_size=4), float32(-9999, 0))
logprobs = st.builds(m.TokenLogprob, candidates, st.lists(candidates, max_size=3).map(tuple))
bodies = st.one_of(
    st.builds(m.Started, texts, counts, counts, texts),
    st.builds(m.Delta, texts, st.lists(uint32, max_size=4).map(tuple), st.lists(logprobs, max_size=3).map(tuple)),
    st.builds(m.Finished, st.sampled_from(m.FinishReason), usages, st.none() | texts, st.none()),
    st.builds(m.Finished, st.sampled_from(m.FinishReason), usages, st.none(), st.none() | uint32),
)
seconds = st.floats(0, 1e9)
step_profiles = st.builds(
    m.StepProfile, counts, st.booleans(), counts, counts, counts, seconds, seconds, seconds, seconds
)
profiles = st.builds(m.EngineProfile, st.lists(step_profiles, max_size=3).map(tuple), counts, counts)
deployments = st.builds(m.Deployment, counts, counts, counts, counts, counts, st.integers(0, 2**63), texts, profiles)
models = st.builds(
    m.ModelInfo,
    id=texts,
    state=st.sampled_from(m.ModelState),
    architecture=texts,
    quantization=texts,
    parameter_count=st.integers(0, 2**63),
    context_length=counts,
    size_bytes=st.integers(0, 2**63),
    created_unix_s=st.integers(0, 2**32),
    deployment=st.none() | deployments,
)


loads = st.builds(ModelLoad, texts, running=uint32, queued=uint32, running_tokens=st.integers(0, 2**63))
machine_ids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=9)
slotted = st.builds(lambda model, name: replace(model, id=name), models, ids).filter(
    lambda model: model.deployment is None or model.deployment.slots > 0
)


@given(
    st.builds(
        m.MachineInfo,
        machine_ids,
        st.integers(1, 2**63),
        st.integers(0, 2**63),
        texts,
        st.lists(slotted, max_size=3, unique_by=lambda model: model.id).map(tuple),
        st.booleans(),
        st.booleans(),
    ),
    st.none() | st.lists(loads, max_size=3).map(tuple),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**63),
)
def test_machines_as_operators_see_them(
    info: m.MachineInfo, busy: tuple[ModelLoad, ...] | None, online: bool, broken: bool, own_tokens: int
) -> None:
    report = None if busy is None else LoadReport(MachineId(info.id), info.epoch, 7, busy)
    status = MachineStatus(info, online, report, own_tokens, broken)
    raw = wire.status_to_proto(status).SerializeToString()
    assert wire.status_from_proto(admin_pb2.MeshMachine.FromString(raw)) == status


@given(st.builds(m.LoadProgress, st.sampled_from(m.LoadStage), counts, counts, st.none() | models))
def test_the_progress_that_operators_get(progress: m.LoadProgress) -> None:
    raw = wire.deploy_progress_to_proto(progress).SerializeToString()
    assert wire.progress_from_proto(admin_pb2.DeployModelResponse.FromString(raw)) == progress


@given(requests)
def test_requests(request: m.GenerateRequest) -> None:
    raw = wire.request_to_proto(request).SerializeToString()
    assert wire.request_from_proto(generation_pb2.GenerateRequest.FromString(raw)) == request


@given(st.builds(m.Event, st.integers(0, 2**63), counts, bodies))
def test_events(event: m.Event) -> None:
    raw = wire.event_to_proto(event).SerializeToString()
    assert wire.event_from_proto(generation_pb2.GenerateResponse.FromString(raw)) == event


@given(models)
def test_models(model: m.ModelInfo) -> None:
    assert wire.model_from_proto(wire.model_to_proto(model)) == model


@given(st.builds(m.LoadProgress, st.sampled_from(m.LoadStage), counts, counts, st.none() | models))
def test_progress(progress: m.LoadProgress) -> None:
    assert wire.progress_from_proto(wire.progress_to_proto(progress)) == progress


@pytest.mark.parametrize("prompt", [m.TextPrompt("a"), m.ChatPrompt((m.ChatMessage(m.Role.USER, "b"),))])
def test_prompts_to_count(prompt: m.ChatPrompt | m.TextPrompt) -> None:
    message = wire.count_request_to_proto("model", prompt, include_token_ids=True)
    assert (message.model, message.include_token_ids) == ("model", True)
    assert wire.count_request_from_proto(message) == prompt


def test_fields_that_are_not_set_mean_the_default() -> None:
    message = generation_pb2.GenerateRequest(request_id="r", model="x", text="hi")
    assert wire.request_from_proto(message) == m.GenerateRequest("r", "x", m.TextPrompt("hi"))


def test_resume_points_come_back_from_the_wire() -> None:
    point = m.ResumePoint(((1, 2), (), (3,)), frozenset({1}))
    request = m.GenerateRequest("r", "x", m.TextPrompt("hi"), m.SamplingParams(seed=1), n=3, resume=point)
    assert wire.request_from_proto(wire.request_to_proto(request)) == request


@pytest.mark.parametrize("choice", [*ToolChoiceMode, NamedTool("f")])
def test_tools_and_variables_come_back_from_the_wire(choice: ToolChoice) -> None:
    prompt = m.ChatPrompt(
        (m.ChatMessage(m.Role.USER, "hi"),),
        tools=(Tool("f", "does", '{"type": "object"}', strict=True), Tool("g")),
        tool_choice=choice,
        parallel_tool_calls=False,
        template_variables={"enable_thinking": False, "depth": 3, "names": ["a", None]},
    )
    request = m.GenerateRequest("r", "x", prompt)
    assert wire.request_from_proto(wire.request_to_proto(request)) == request


def test_calls_and_reasoning_come_back_from_the_wire() -> None:
    usage = m.Usage(3, 5, reasoning_tokens=2)
    parts = (ToolCallDelta(0, id="call_1", name="f"), ToolCallDelta(0, '{"a"'))
    for body in (m.Delta("", (7,), tool_calls=parts, reasoning="so"), m.Finished(m.FinishReason.TOOL_CALLS, usage)):
        event = m.Event(0, 0, body)
        assert wire.event_from_proto(wire.event_to_proto(event)) == event


BAD_CHATS: list[tuple[str, dict[str, Any]]] = [
    ("tools", {"tools": [{"name": "f"}, {"name": "f"}]}),
    ("tools", {"tools": [{"name": f"f{i}"} for i in range(m.MAX_TOOLS + 1)]}),
    ("tool_choice", {"tool_choice": {"mode": 3}}),
    ("tool_choice", {"tool_choice": {"mode": 9}}),
    ("tool_choice", {"tools": [{"name": "f"}], "tool_choice": {"function_name": "g"}}),
    ("template_variables", {"template_variables": {"a": float("inf")}}),
    ("template_variables", {"template_variables": {"a": 2.0**53}}),
    ("template_variables", {"template_variables": {"a": {"b": [0] * m.MAX_TEMPLATE_VALUES}}}),
    ("template_variables", {"template_variables": {str(i): 1 for i in range(m.MAX_TEMPLATE_VARIABLES + 1)}}),
]


@pytest.mark.parametrize(("param", "fields"), BAD_CHATS)
def test_bad_tools_and_variables_are_refused_by_name(param: str, fields: dict[str, Any]) -> None:
    chat = chat_pb2.ChatPrompt(messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER)], **fields)
    with pytest.raises(MantlerError) as raised:
        wire.request_from_proto(generation_pb2.GenerateRequest(request_id="r", model="x", chat=chat))
    assert (raised.value.code, raised.value.param) == (ErrorCode.INVALID_PARAMETER, param)


def test_too_many_variables_are_refused_before_they_are_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("google.protobuf.json_format.MessageToDict")
    chat = chat_pb2.ChatPrompt(messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER)])
    chat.template_variables.update({"a": [{"b": [0] * 100}] * (m.MAX_TEMPLATE_VALUES // 100)})
    with pytest.raises(MantlerError, match="at most 10000 values"):
        wire.request_from_proto(generation_pb2.GenerateRequest(request_id="r", model="x", chat=chat))


def test_an_event_of_the_future_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown event"):
        wire.event_from_proto(generation_pb2.GenerateResponse(seq=1))


UNSUPPORTED: list[tuple[str, dict[str, Any]]] = [
    ("messages[0].content", {"chat": {"messages": [{"role": 3, "content": [{"image": {"uri": "x"}}]}]}}),
]


@pytest.mark.parametrize(("param", "fields"), UNSUPPORTED, ids=[param for param, _ in UNSUPPORTED])
def test_what_is_not_supported_yet_is_refused_by_name(param: str, fields: dict[str, Any]) -> None:
    prompt: dict[str, Any] = {} if "chat" in fields else {"text": "hi"}
    with pytest.raises(MantlerError) as raised:
        wire.request_from_proto(generation_pb2.GenerateRequest(request_id="r", model="x", **prompt, **fields))
    assert (raised.value.code, raised.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, param)


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("prompt", generation_pb2.GenerateRequest(request_id="r", model="x")),
        ("request_id", generation_pb2.GenerateRequest(model="x", text="a")),
        ("model", generation_pb2.GenerateRequest(request_id="r", text="a")),
        ("priority", generation_pb2.GenerateRequest(request_id="r", model="x", text="a", priority=101)),
        ("n", generation_pb2.GenerateRequest(request_id="r", model="x", text="a", n=0)),
        ("n", generation_pb2.GenerateRequest(request_id="r", model="x", text="a", n=129)),
        (
            "top_logprobs",
            generation_pb2.GenerateRequest(
                request_id="r", model="x", text="a", logprobs=generation_pb2.LogprobsOptions(top_logprobs=21)
            ),
        ),
        ("cache_salt", generation_pb2.GenerateRequest(request_id="r", model="x", text="a", cache_salt="")),
        (
            "choice",
            generation_pb2.GenerateRequest(
                request_id="r", model="x", text="a", choice=generation_pb2.ChoiceConstraint()
            ),
        ),
        (
            "choice",
            generation_pb2.GenerateRequest(
                request_id="r", model="x", text="a", choice=generation_pb2.ChoiceConstraint(values=["b", ""])
            ),
        ),
        ("regex", generation_pb2.GenerateRequest(request_id="r", model="x", text="a", regex="")),
        ("regex", generation_pb2.GenerateRequest(request_id="r", model="x", text="a", regex="a" * 16_385)),
        ("grammar", generation_pb2.GenerateRequest(request_id="r", model="x", text="a", grammar="a" * 131_073)),
        (
            "response_format.json_schema.schema",
            generation_pb2.GenerateRequest(request_id="r", model="x", text="a", json_schema="{" * 131_073),
        ),
        ("messages", generation_pb2.GenerateRequest(request_id="r", model="x", chat=chat_pb2.ChatPrompt())),
        ("messages[0].role", generation_pb2.GenerateRequest(request_id="r", model="x", chat={"messages": [{}]})),  # type: ignore[arg-type]
    ],
)
def test_invalid_requests(param: str, message: generation_pb2.GenerateRequest) -> None:
    with pytest.raises(MantlerError) as raised:
        wire.request_from_proto(message)
    assert (raised.value.code, raised.value.param) == (ErrorCode.INVALID_PARAMETER, param)


@pytest.mark.parametrize(
    ("param", "sampling"),
    [
        ("presence_penalty", {"presence_penalty": 2.5}),
        ("frequency_penalty", {"frequency_penalty": -2.5}),
        ("repetition_penalty", {"repetition_penalty": 0}),
        ("repetition_penalty", {"repetition_penalty": 10.5}),
        ("logit_bias", {"logit_bias": {1: 101}}),
        ("logit_bias", {"logit_bias": {1: float("nan")}}),
        ("logit_bias", {"logit_bias": dict.fromkeys(range(301), 1)}),
    ],
)
def test_sampling_out_of_range(param: str, sampling: dict[str, Any]) -> None:
    with pytest.raises(MantlerError) as raised:
        wire.request_from_proto(
            generation_pb2.GenerateRequest(
                request_id="r", model="x", text="a", sampling=generation_pb2.SamplingOptions(**sampling)
            )
        )
    assert (raised.value.code, raised.value.param) == (ErrorCode.INVALID_PARAMETER, param)


def test_a_bias_names_a_token_once() -> None:
    with pytest.raises(MantlerError, match="logit_bias: must name each token once"):
        m.SamplingParams(logit_bias=((1, 1.0), (1, 2.0)))


def test_every_code_has_a_row_with_known_statuses() -> None:
    assert TABLE.keys() == set(ErrorCode)
    for row in TABLE.values():
        assert row.grpc_status in grpc.StatusCode.__members__
        assert 400 <= row.http_status <= 599


def received(status: grpc.StatusCode, details: bytes | None = None, text: str = "secret") -> AioRpcError:
    trailing = Metadata() if details is None else Metadata((DETAILS_KEY, details))
    return AioRpcError(status, Metadata(), trailing, text, "")


@given(
    code=st.sampled_from(ErrorCode),
    message=texts,
    param=st.none() | st.text(min_size=1, max_size=9),
    retry_after_s=st.none() | st.integers(0, 10**6).map(lambda ms: ms / 1000),
)
def test_errors(code: ErrorCode, message: str, param: str | None, retry_after_s: float | None) -> None:
    error = MantlerError(code, message, param=param, retry_after_s=retry_after_s)
    back = from_rpc_error(received(status_code(error), to_status(error).SerializeToString()))
    assert (back.code, back.message, back.param) == (code, message, param)
    assert back.retry_after_s == (None if retry_after_s is None else pytest.approx(retry_after_s, abs=1e-8))


@pytest.mark.parametrize("status", list(grpc.StatusCode))
def test_a_strangers_status_keeps_its_words_to_itself(status: grpc.StatusCode) -> None:
    error = from_rpc_error(received(status))
    assert "secret" not in error.message
    assert isinstance(error.code, ErrorCode)


@pytest.mark.parametrize("raw", [b"\xff\xff", b"", status_pb2.Status(message="x").SerializeToString()])
def test_details_that_are_not_ours(raw: bytes) -> None:
    error = from_rpc_error(received(grpc.StatusCode.UNAVAILABLE, raw))
    assert error.code is ErrorCode.MACHINE_OFFLINE


def test_a_reason_of_the_future_falls_back_to_its_status() -> None:
    status = status_pb2.Status(code=14)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="new_in_v9", domain="mantler"))
    raw = status.SerializeToString()
    error = from_rpc_error(received(grpc.StatusCode.UNAVAILABLE, raw))
    assert error.code is ErrorCode.MACHINE_OFFLINE


def test_float32_rounding_is_all_that_the_wire_changes() -> None:
    request = m.GenerateRequest("r", "x", m.TextPrompt("a"), m.SamplingParams(temperature=0.7))
    back = wire.request_from_proto(wire.request_to_proto(request))
    assert back.sampling.temperature == struct.unpack("f", struct.pack("f", 0.7))[0]
