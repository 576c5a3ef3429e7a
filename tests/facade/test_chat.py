"""Chat completions that go well, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mantler import messages as m
from tests.facade.conftest import MODEL, Facade, chat
from tests.fake_runtime import FINGERPRINT, Body


async def test_whole_answer(facade: Facade) -> None:
    status, body, response = await facade.post(chat("one two three"))
    assert status == 200
    assert response.headers["Content-Type"].startswith("application/json")
    assert body.pop("id").startswith("chatcmpl-")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "chat.completion",
        "model": MODEL,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "one two three", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 3,
            "total_tokens": 6,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_stream(facade: Facade) -> None:
    data, response = await facade.stream(chat('ein "zwei"\n\ndrei\u2028 vier'))
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["x-request-id"]
    assert data.pop() == "[DONE]"
    chunks = [json.loads(each) for each in data]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert all("usage" not in chunk for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all("role" not in choice["delta"] for choice in choices[1:])
    assert "".join(choice["delta"].get("content", "") for choice in choices) == 'ein "zwei"\n\ndrei\u2028 vier'
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert choices[-1]["delta"] == {}


async def test_stream_with_usage(facade: Facade) -> None:
    data, _ = await facade.stream(chat("a b", stream_options={"include_usage": True}))
    *chunks, last = [json.loads(each) for each in data[:-1]]
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 4
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_empty_deltas_are_not_sent(facade: Facade) -> None:
    async def held_back(request: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        yield m.Started(request.model, 1)
        yield m.Delta("", (1,))
        yield m.Delta("é", (2,))
        yield m.Finished(m.FinishReason.STOP, m.Usage(1, 2))

    facade.runtime.script = held_back
    data, _ = await facade.stream(chat())
    assert [json.loads(each)["choices"][0]["delta"].get("content") for each in data[:-1]] == ["", "é", None]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_length(facade: Facade, name: str) -> None:
    _, body, _ = await facade.post(chat("a b c d", **{name: 2}))
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 2


async def test_every_option_reaches_the_runtime(facade: Facade) -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "min_p": 0.125,
        "seed": -1,
        "max_tokens": 30,
        "max_completion_tokens": 20,
        "min_tokens": 2,
        "stop": ["x", "y"],
        "stop_token_ids": [5],
        "ignore_eos": True,
        "priority": 3,
        "n": 2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "logit_bias": {"7": -100, "3": 0.5},
        "logprobs": True,
        "top_logprobs": 4,
    }
    status, _, _ = await facade.post(chat(**fields))
    assert status == 200
    request = facade.runtime.requests[0]
    bias = ((3, 0.5), (7, -100.0))
    assert request.sampling == m.SamplingParams(0.5, 0.25, 7, 0.125, 2**64 - 1, 0.5, -0.5, 1.5, bias)
    assert (request.n, request.logprobs) == (2, m.LogprobsParams(4))
    assert request.stop == m.StopParams(20, 2, ("x", "y"), (5,), True)
    assert request.priority == 3


async def test_prompts_are_shared_within_a_key_and_a_salt(facade: Facade) -> None:
    for salt in (None, None, "a", "b", "a"):
        await facade.post(chat(cache_salt=salt))
    salts = [request.cache_salt for request in facade.runtime.requests]
    assert None not in salts
    assert salts[0] == salts[1]
    assert salts[2] == salts[4]
    assert len(set(salts)) == 3


async def test_cached_tokens_are_told(facade: Facade) -> None:
    async def cached(request: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        yield m.Started(request.model, 40, 16)
        yield m.Finished(m.FinishReason.STOP, m.Usage(40, 0, 32))

    facade.runtime.script = cached
    _, body, _ = await facade.post(chat())
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 32}
    data, _ = await facade.stream(chat(stream_options={"include_usage": True}))
    assert json.loads(data[-2])["usage"]["prompt_tokens_details"] == {"cached_tokens": 32}


async def test_every_role_and_text_parts(facade: Facade) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d", "name": "dev"},
        {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "tool_call_id": "1", "content": "t", "unknown": 1},
    ]
    status, _, _ = await facade.post({"model": MODEL, "messages": messages})
    assert status == 200
    prompt = facade.runtime.requests[0].prompt
    assert isinstance(prompt, m.ChatPrompt)
    assert [(turn.role.value, turn.content, turn.name) for turn in prompt.messages] == [
        ("system", "s", None),
        ("developer", "d", "dev"),
        ("user", "a b", None),
        ("assistant", None, None),
        ("tool", "t", None),
    ]


async def test_null_and_no_op_values_and_unknown_fields_are_accepted(facade: Facade) -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        ("temperature", "stop", "seed", "max_tokens", "stream", "stream_options", "tools", "tool_choice", "n", "user")
    )
    assert (await facade.post(chat(**nothing)))[0] == 200
    no_ops: dict[str, Any] = {
        "n": 1,
        "logprobs": False,
        "top_logprobs": 0,
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "parallel_tool_calls": True,
        "store": False,
        "service_tier": "auto",
        "user": "u",
        "metadata": {"a": "b"},
        "safety_identifier": "x",
        "never_heard_of": {"deep": [1, 2, {"x": None}]},
    }
    assert (await facade.post(chat(**no_ops)))[0] == 200
    sampling = facade.runtime.requests[1].sampling
    assert sampling == m.SamplingParams()


async def test_request_id_is_kept_and_sent_on(facade: Facade) -> None:
    _, _, response = await facade.post(chat(), headers={**facade.headers, "x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert facade.runtime.requests[0].request_id == "mine-1"
    _, _, response = await facade.post(chat(), headers={**facade.headers, "x-request-id": "x" * 129})
    assert response.headers["x-request-id"].startswith("req_")
