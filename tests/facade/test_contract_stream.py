"""The contract of streams: what each chunk holds, in which order, and how a stream ends."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mantler import messages as m
from mantler.errors import ErrorCode, MantlerError
from tests.facade.conftest import AUTH, MODEL, Facade, chat, events
from tests.fake_runtime import FINGERPRINT, Body, Gate, Said, failing


async def chunks(facade: Facade, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a stream that ends well."""
    data, _ = await facade.stream(chat(**fields))
    assert data.pop() == "[DONE]"
    return [json.loads(each) for each in data]


def deltas(answer: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    """The deltas of one choice."""
    choices = [choice for chunk in answer for choice in chunk["choices"]]
    return [choice["delta"] for choice in choices if choice["index"] == index]


async def test_the_bytes_of_a_stream(facade: Facade) -> None:
    sent = chat('a "b\u2028', stream=True, stream_options={"include_usage": True})
    async with facade.http.post(f"{facade.url}/v1/chat/completions", json=sent, headers=AUTH) as response:
        raw = (await response.read()).decode()
    head = (
        f'{{"id":"ID","object":"chat.completion.chunk","created":0,"model":"{MODEL}",'
        f'"system_fingerprint":"{FINGERPRINT}"'
    )
    tail = '"usage":null}'
    choice = f'{head},"choices":[{{"index":0,"delta":'
    usage = (
        '{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4,"prompt_tokens_details":{"cached_tokens":0},'
        '"completion_tokens_details":{"reasoning_tokens":0}}'
    )
    expected = [
        f'{choice}{{"role":"assistant","content":"","refusal":null}},"logprobs":null,"finish_reason":null}}],{tail}',
        f'{choice}{{"content":"a"}},"logprobs":null,"finish_reason":null}}],{tail}',
        f'{choice}{{"content":" \\"b\u2028"}},"logprobs":null,"finish_reason":null}}],{tail}',
        f'{choice}{{}},"logprobs":null,"finish_reason":"stop"}}],{tail}',
        f'{head},"choices":[],"usage":{usage}}}',
        "[DONE]",
    ]
    plain = re.sub(r'"created":\d+', '"created":0', re.sub(r"chatcmpl-[0-9a-f]{32}", "ID", raw))
    assert plain == "".join(f"data: {each}\n\n" for each in expected)


async def test_01_the_first_chunk_of_each_choice_has_the_role_and_no_other_has(facade: Facade) -> None:
    answer = await chunks(facade, n=2)
    for index in (0, 1):
        first, *others = deltas(answer, index)
        assert first == {"role": "assistant", "content": "", "refusal": None}
        assert all("role" not in delta for delta in others)


async def test_02_all_chunks_share_id_created_model_and_object(facade: Facade) -> None:
    answer = await chunks(facade, n=2, stream_options={"include_usage": True})
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in answer}) == 1
    assert answer[0]["id"].startswith("chatcmpl-")
    assert (answer[0]["model"], answer[0]["object"]) == (MODEL, "chat.completion.chunk")


async def test_03_role_chunks_come_in_the_order_of_their_indices(facade: Facade) -> None:
    async def backwards(request: m.GenerateRequest) -> AsyncGenerator[Said, None]:
        for index in (2, 0, 1):
            yield index, m.Started(request.model, 1)
            yield index, m.Delta(f"text {index}", (1,))
        for index in (1, 2, 0):
            yield index, m.Finished(m.FinishReason.STOP, m.Usage(1, 1))

    facade.runtime.script = backwards
    answer = [chunk["choices"][0] for chunk in await chunks(facade, n=3)]
    assert [choice["index"] for choice in answer] == [0, 1, 2, 2, 0, 1, 1, 2, 0]
    assert all(choice["delta"].get("role") == "assistant" for choice in answer[:3])


async def test_04_each_choice_has_one_finish_reason_after_its_last_content(facade: Facade) -> None:
    answer = [chunk["choices"][0] for chunk in await chunks(facade, n=2)]
    for index in (0, 1):
        own = [choice for choice in answer if choice["index"] == index]
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]
        assert own[-1]["delta"] == {}


@pytest.mark.parametrize("finished", [(), (0,)])
@pytest.mark.parametrize("stream", [False, True])
async def test_04_an_answer_without_all_its_choices_is_a_failure(
    facade: Facade, finished: tuple[int, ...], stream: bool
) -> None:
    async def one(request: m.GenerateRequest) -> AsyncGenerator[Said, None]:
        yield 0, m.Started(request.model, 1)
        for index in finished:
            yield index, m.Finished(m.FinishReason.STOP, m.Usage(1, 0))

    facade.runtime.script = one
    if stream:
        data, _ = await facade.stream(chat(n=2))
        assert json.loads(data[-1])["error"]["code"] == "internal_error"
    else:
        assert (await facade.post(chat(n=2)))[0] == 500


async def test_06_usage_is_a_last_chunk_where_it_was_asked_for(facade: Facade) -> None:
    *others, last = await chunks(facade, n=2, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert all(chunk["usage"] is None for chunk in others)


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": None}])
async def test_06_no_usage_in_other_streams(facade: Facade, options: dict[str, Any] | None) -> None:
    answer = await chunks(facade, stream_options=options)
    assert all("usage" not in chunk for chunk in answer)


@pytest.mark.parametrize("stream", [None, False])
async def test_06_stream_options_without_a_stream(facade: Facade, stream: bool | None) -> None:
    status, body, _ = await facade.post(chat(stream=stream, stream_options={"include_usage": True}))
    assert (status, body["error"]["param"]) == (400, "stream_options")


@pytest.mark.parametrize("text", ["one two three", 'ein "zwei"\n\ndrei\u2028 vier', "\\ \t\x00 \x7f 🗼"])
async def test_07_joined_deltas_are_the_whole_text(facade: Facade, text: str) -> None:
    _, body, _ = await facade.post(chat(text, temperature=0))
    data, _ = await facade.stream(chat(text, temperature=0))
    parts = [json.loads(each)["choices"][0]["delta"].get("content", "") for each in data[:-1]]
    assert "".join(parts) == body["choices"][0]["message"]["content"] == text
    assert len(parts) > 3


async def test_08_a_stream_ends_with_done_and_the_end_of_the_body(facade: Facade) -> None:
    async with facade.http.post(f"{facade.url}/v1/chat/completions", json=chat(stream=True), headers=AUTH) as response:
        raw = await response.read()  # raises where the body does not end as HTTP ends it
    assert raw.endswith(b"\n\ndata: [DONE]\n\n")
    assert all(block.startswith(b"data: ") for block in raw.removesuffix(b"\n\n").split(b"\n\n"))


async def test_08_a_failure_in_the_stream_is_its_last_event(facade: Facade) -> None:
    late = MantlerError(ErrorCode.MACHINE_OFFLINE, "Off.", retry_after_s=1)
    facade.runtime.script = failing(late, after=(m.Started(MODEL, 1), m.Delta("a", (1,))))
    data, _ = await facade.stream(chat())
    assert json.loads(data[-1])["error"]["code"] == "machine_offline"
    assert "[DONE]" not in data
    status, body, _ = await facade.post(chat())
    assert (status, body["error"]["code"]) == (503, "machine_offline")


@pytest.mark.parametrize("stream", [False, True])
async def test_08_what_the_runtime_refuses_is_a_status_and_costs_nothing(facade: Facade, stream: bool) -> None:
    headers, _ = await facade.new_key(requests_per_minute=1)
    cases = [
        (m.context_exceeded(9000, 8192), 400, "context_length_exceeded"),
        (MantlerError(ErrorCode.QUEUE_FULL, "Full.", retry_after_s=2.5), 429, "queue_full"),
        (MantlerError(ErrorCode.MACHINE_OFFLINE, "Off.", retry_after_s=7), 503, "machine_offline"),
        (MantlerError(ErrorCode.DEADLINE_EXCEEDED, "Late."), 504, "deadline_exceeded"),
        (MantlerError(ErrorCode.CANCELLED, "Gone."), 503, "runtime_unavailable"),
    ]
    for error, status_wanted, code in cases:
        facade.runtime.script = failing(error)
        status, body, response = await facade.post(chat(stream=stream), headers=headers)
        assert (status, body["error"]["code"]) == (status_wanted, code)
        assert response.headers["x-ratelimit-remaining-requests"] == "1"
        assert ("Retry-After" in response.headers) == (status in (429, 503))
    assert cases[0][0].param == "messages"


@pytest.mark.parametrize("changes", [{"ping_interval_s": 0.05}])
async def test_08_a_failure_after_the_first_ping_is_an_event(facade: Facade) -> None:
    opened = asyncio.Event()

    async def late(request: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        await opened.wait()
        raise m.context_exceeded(9000, 8192)
        yield

    facade.runtime.script = late
    async with facade.http.post(f"{facade.url}/v1/chat/completions", json=chat(stream=True), headers=AUTH) as response:
        assert await response.content.readline() == b": ping\n"
        opened.set()
        data = events((await response.read()).decode().lstrip("\n"))
    assert [json.loads(each)["error"]["code"] for each in data] == ["context_length_exceeded"]


async def test_09_headers(facade: Facade) -> None:
    _, response = await facade.stream(chat())
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("changes", [{"ping_interval_s": 0.05}])
async def test_09_pings_before_the_first_token_and_between(facade: Facade) -> None:
    gate = facade.runtime.script = Gate(stop_after=0)
    sent = {**chat("a b"), "stream": True}
    async with facade.http.post(f"{facade.url}/v1/chat/completions", json=sent, headers=AUTH) as response:
        assert response.status == 200
        assert await response.content.readline() == b": ping\n"
        gate.opened.set()
        text = (await response.read()).decode().lstrip("\n")
    data = events(text)
    assert data[-1] == "[DONE]"
    gate = facade.runtime.script = Gate(stop_after=2)
    async with facade.http.post(f"{facade.url}/v1/chat/completions", json=sent, headers=AUTH) as response:
        while await response.content.readline() != b": ping\n":
            pass
        gate.opened.set()
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
