"""Chat completions that go well, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from mantler import messages as m
from mantler.messages import ToolCall
from tests.facade.conftest import MODEL, Facade, chat
from tests.fake_runtime import Body


async def test_empty_deltas_are_not_sent(facade: Facade) -> None:
    async def held_back(request: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        yield m.Started(request.model, 1)
        yield m.Delta("", (1,))
        yield m.Delta("é", (2,))
        yield m.Finished(m.FinishReason.STOP, m.Usage(1, 2))

    facade.runtime.script = held_back
    data, _ = await facade.stream(chat())
    assert [json.loads(each)["choices"][0]["delta"].get("content") for each in data[:-1]] == ["", "é", None]


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


async def test_every_role_and_its_fields_reach_the_runtime(facade: Facade) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d", "name": "dev"},
        {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm", "refusal": None},
        {"role": "tool", "tool_call_id": "call_1", "content": "t", "unknown": 1},
        {"role": "assistant", "content": "c", "tool_calls": [], "reasoning": "so"},
        {"role": "user", "content": "", "tool_calls": None, "tool_call_id": None},
    ]
    status, body, _ = await facade.post({"model": MODEL, "messages": messages})
    assert status == 200, body
    prompt = facade.runtime.requests[0].prompt
    assert isinstance(prompt, m.ChatPrompt)
    assert prompt.messages == (
        m.ChatMessage(m.Role.SYSTEM, "s"),
        m.ChatMessage(m.Role.DEVELOPER, "d", name="dev"),
        m.ChatMessage(m.Role.USER, "a b"),
        m.ChatMessage(m.Role.ASSISTANT, None, tool_calls=(ToolCall("call_1", "look", '{"at": 1}'),), reasoning="hm"),
        m.ChatMessage(m.Role.TOOL, "t", tool_call_id="call_1"),
        m.ChatMessage(m.Role.ASSISTANT, "c", reasoning="so"),
        m.ChatMessage(m.Role.USER, ""),
    )


async def test_request_id_is_kept_and_sent_on(facade: Facade) -> None:
    _, _, response = await facade.post(chat(), headers={**facade.headers, "x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert facade.runtime.requests[0].request_id == "mine-1"
    _, _, response = await facade.post(chat(), headers={**facade.headers, "x-request-id": "x" * 129})
    assert response.headers["x-request-id"].startswith("req_")
