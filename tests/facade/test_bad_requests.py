"""What is wrong with a request is a 400 that names it, never a 500, and the connection survives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from facade.options import NO_OPS
from facade.schema import ChatBody, parse_chat_body, to_generate_request
from mantler.errors import MantlerError
from mantler.messages import MAX_MESSAGES
from tests import bad_requests
from tests.bad_fields import ADDRESSES
from tests.facade.conftest import MODEL, Facade, chat

NOT_JSON = [b"", b"42", b'"string"', b"null", b"[123]", b"[{}]", b"{", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000]
NOT_JSON += [b'{"model": "\\ud800"}', b'{"a":' * 300 + b"1" + b"}" * 300, b"\xef\xbb\xbf{}", b"1" * 10_000]


def _messages(**message: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x", **message}]}


_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def _schema(**fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, **fields}}}


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": 1}, "model"),
    ({"model": ""}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [1]}, "messages[0]"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": 1}]}, "messages[1].role"),
    (_messages(role="god"), "messages[0].role"),
    (_messages(content=None), "messages[0].content"),
    (_messages(content=1), "messages[0].content"),
    (_messages(content=[]), "messages[0].content"),
    (_messages(content=[1]), "messages[0].content[0]"),
    (_messages(content=[{"type": "text"}]), "messages[0].content[0].text"),
    (_messages(content=[{"type": "text", "text": "a"}, {"type": "?"}]), "messages[0].content[1].type"),
    (_messages(name=1), "messages[0].name"),
    ({"messages": [{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1)}, "messages"),
    ({"stream": "true"}, "stream"),
    ({"stream_options": {}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 5, "max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": -3}, "max_completion_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 1, "min_tokens": 2}, "min_tokens"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"stop": {}}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
    ({"priority": -1}, "priority"),
    ({"priority": 101}, "priority"),
    ({"priority": 0.5}, "priority"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"cache_salt": "s" * 257}, "cache_salt"),
    ({"cache_salt": 1}, "cache_salt"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": "2"}, "n"),
    ({"logprobs": 5}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"٣": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": 10**400}}, "logit_bias"),
    ({"logit_bias": {"1": "5"}}, "logit_bias"),
    ({"logit_bias": {"1": True}}, "logit_bias"),
    ({"logit_bias": {"1": 1, "01": 2}}, "logit_bias"),
    ({"logit_bias": {"9999999999": 1}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 11}, "repetition_penalty"),
    ({"metadata": "x"}, "metadata"),
    (_messages(tool_call_id="1"), "messages[0].tool_call_id"),
    (_messages(role="tool"), "messages[0].tool_call_id"),
    (_messages(tool_calls=[_CALL]), "messages[0].tool_calls"),
    (_messages(reasoning_content="hm"), "messages[0].reasoning_content"),
    (_messages(role="assistant", tool_calls={}), "messages[0].tool_calls"),
    (_messages(role="assistant", tool_calls=[_CALL, 1]), "messages[0].tool_calls[1]"),
    (_messages(role="assistant", tool_calls=[{"id": "1"}]), "messages[0].tool_calls[0].type"),
    (_messages(role="assistant", tool_calls=[{**_CALL, "type": "?"}]), "messages[0].tool_calls[0].type"),
    (
        _messages(role="assistant", tool_calls=[{**_CALL, "function": {"name": "f", "arguments": {}}}]),
        "messages[0].tool_calls[0].function.arguments",
    ),
]

_SCHEMA = "response_format.json_schema"
STRUCTURED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": "text"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": ["text"]}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, _SCHEMA),
    (_schema(name=1), f"{_SCHEMA}.name"),
    (_schema(name="a b"), f"{_SCHEMA}.name"),
    (_schema(name="n" * 65), f"{_SCHEMA}.name"),
    (_schema(description=1), f"{_SCHEMA}.description"),
    (_schema(strict="yes"), f"{_SCHEMA}.strict"),
    (_schema(schema=None), f"{_SCHEMA}.schema"),
    (_schema(schema="{}"), f"{_SCHEMA}.schema"),
    (_schema(schema={"description": "x" * 131_072}), f"{_SCHEMA}.schema"),
    ({"regex": 1}, "regex"),
    ({"regex": ""}, "regex"),
    ({"guided_regex": ""}, "guided_regex"),
    ({"choice": "a"}, "choice"),
    ({"choice": []}, "choice"),
    ({"guided_choice": ["a", 1]}, "guided_choice"),
    ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice"),
    ({"grammar": {}}, "grammar"),
    ({"guided_json": 5}, "guided_json"),
    ({"structured_outputs": []}, "structured_outputs"),
    ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
    ({"regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
]

UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"store": True}, "store"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"best_of": 2}, "best_of"),
    ({"echo": True}, "echo"),
    ({"skip_special_tokens": False}, "skip_special_tokens"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    (_messages(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "messages[0].content[0]"),
    (_messages(content=[{"type": "input_audio", "input_audio": {}}]), "messages[0].content[0]"),
    (_messages(role="assistant", tool_calls=[{"id": "1", "type": "custom"}]), "messages[0].tool_calls[0]"),
    (_messages(role="assistant", audio={"id": "a"}), "messages[0].audio"),
    (_messages(role="assistant", refusal="no"), "messages[0].refusal"),
]


@pytest.mark.parametrize(("fields", "param"), [*INVALID, *STRUCTURED], ids=lambda value: repr(value)[:60])
def test_invalid_parameters(fields: dict[str, Any], param: str) -> None:
    error = _error(fields)
    assert (error.code.value, error.param) == ("invalid_parameter", param)
    assert error.message.startswith(param)


@pytest.mark.parametrize(("fields", "param"), UNSUPPORTED, ids=repr)
def test_unsupported_parameters(fields: dict[str, Any], param: str) -> None:
    error = _error(fields)
    assert (error.code.value, error.param) == ("unsupported_parameter", param)
    assert error.message.startswith(param)


def _error(fields: dict[str, Any]) -> MantlerError:
    with pytest.raises(MantlerError) as raised:
        to_generate_request(parse_chat_body(json.dumps({**chat(), **fields}).encode()), "id")
    return raised.value


def test_only_the_first_of_many_bad_elements_is_looked_at() -> None:
    with pytest.raises(ValidationError) as raised:
        ChatBody.model_validate({**chat(), "stop_token_ids": ["x"] * 1000})
    assert raised.value.error_count() == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_the_parameter_is_named_over_http(facade: Facade, stream: bool) -> None:
    status, body, response = await facade.post(chat(stream=stream, temperature=3))
    assert status == 400
    assert body["error"] == {
        "message": "temperature: must be between 0 and 2, got 3.",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "invalid_parameter",
    }
    assert response.headers["x-request-id"]
    assert not facade.runtime.requests


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # the strategy is slow on a busy machine
@given(fields=st.dictionaries(st.sampled_from(sorted({*ChatBody.model_fields, *NO_OPS})), _json_values, max_size=4))
def test_any_json_is_a_request_or_a_named_error(fields: dict[str, Any]) -> None:
    raw = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}], **fields}).encode()
    error: MantlerError | None = None
    try:
        to_generate_request(parse_chat_body(raw), "id")
    except MantlerError as raised:
        error = raised
    assert error is None or (error.row.http_status == 400 and error.param)


@given(st.binary(max_size=50))
def test_any_bytes_are_a_request_or_an_error(raw: bytes) -> None:
    with pytest.raises(MantlerError) as raised:
        parse_chat_body(raw)
    assert raised.value.row.http_status == 400


async def test_generated_bad_requests_get_4xx_and_the_server_still_answers(tmp_path: Path) -> None:
    seen = await bad_requests.statuses(range(1000), tmp_path)
    assert {status for _, status in seen} == {400, 401, 404, 405, 415}
    for address in ADDRESSES:
        assert seen[address.path, 400] > 50
