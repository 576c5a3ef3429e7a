"""The contract of requests and connections: what is taken, what is refused, and that nothing is lost by it."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from facade.options import NO_OPS
from mantler import messages as m
from mantler.errors import ErrorCode, MantlerError
from tests.facade.conftest import AUTH, MODEL, Clock, Facade, chat, error_of, raw_request
from tests.fake_runtime import Gate, failing

NOT_JSON = [b"", b"42", b'"string"', b"null", b"[123]", b"[{}]", b"{", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000]
NOT_JSON += [b'{"model": "\\ud800"}', b'{"a":' * 300 + b"1" + b"}" * 300, b"\xef\xbb\xbf{}", b"1" * 10_000]


async def test_19_null_means_the_default_and_unknown_fields_are_ignored(facade: Facade) -> None:
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
    # The facade draws a seed, so that another machine could go on with the answer.
    sampling = replace(facade.runtime.requests[1].sampling, seed=None)
    assert sampling == m.SamplingParams()


@pytest.mark.parametrize("stream", [False, True])
async def test_19_a_known_option_that_cannot_be_honoured_is_refused_by_name(facade: Facade, stream: bool) -> None:
    for name in NO_OPS:
        status, body, _ = await facade.post({**chat(stream=stream), name: {"ask": "for something"}})
        assert (status, body["error"]["code"], body["error"]["param"]) == (400, "unsupported_parameter", name)
    assert not facade.runtime.requests


@pytest.mark.parametrize("raw", NOT_JSON, ids=lambda raw: repr(raw[:12]))
async def test_20_what_is_no_json_object_is_400(facade: Facade, raw: bytes) -> None:
    status, body, _ = await facade.post(raw)
    assert status == 400
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["code"] == "invalid_request"
    assert body["error"]["param"] is None
    assert (await facade.post(chat()))[0] == 200


async def test_21_errors_of_http_are_error_json(facade: Facade) -> None:
    status, body, _ = await facade.get("/nowhere", headers={})
    assert (status, *error_of(body)) == (404, "not_found_error", "route_not_found")
    status, body, response = await facade.get("/v1/chat/completions")
    assert (status, *error_of(body)) == (405, "invalid_request_error", "method_not_allowed")
    assert response.headers["Allow"] == "OPTIONS, POST"
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        status, body, _ = await facade.post(b"{}", headers={**AUTH, "Content-Type": kind})
        assert (status, *error_of(body)) == (415, "invalid_request_error", "unsupported_media_type")
        wanted = "The body must be JSON: send 'Content-Type: application/json'"
        assert body["error"]["message"] == f"{wanted}; got Content-Type '{kind}'."


@pytest.mark.parametrize("changes", [{"max_body_mb": 1}])
async def test_21_a_body_has_a_limit(facade: Facade) -> None:
    long = json.dumps(chat("x" * 2**20)).encode()
    status, body, _ = await facade.post(long)
    assert (status, *error_of(body)) == (413, "invalid_request_error", "request_too_large")
    packed = {**AUTH, "Content-Encoding": "gzip"}
    status, body, _ = await facade.post(gzip.compress(long), headers=packed)
    assert (status, *error_of(body)) == (413, "invalid_request_error", "request_too_large")
    assert (await facade.post(gzip.compress(json.dumps(chat()).encode()), headers=packed))[0] == 200
    assert (await facade.post(b"no gzip", headers=packed))[0] == 400


async def test_21_bodies_beyond_aiohttps_default_are_taken(facade: Facade) -> None:
    assert (await facade.post(json.dumps(chat("x" * 31 * 2**20)).encode()))[0] == 200


async def test_21_head_and_options(facade: Facade) -> None:
    for path in ("/health", "/v1/models", f"/v1/models/{MODEL}"):
        async with facade.http.head(f"{facade.url}{path}", headers=AUTH) as response:
            assert response.status == 200
            assert await response.read() == b""
    asked = {"Origin": "https://a.example", "Access-Control-Request-Headers": "authorization, x-stainless-os"}
    async with facade.http.options(f"{facade.url}/v1/chat/completions", headers=asked) as response:
        assert response.status == 204
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
        assert response.headers["Access-Control-Allow-Headers"] == "authorization, x-stainless-os"
        assert response.headers["Access-Control-Allow-Origin"] == "*"
    async with facade.http.options(f"{facade.url}/nowhere") as response:
        assert response.status == 404


async def test_21_cors_on_errors_and_streams(facade: Facade) -> None:
    for _, _, response in (await facade.get("/nowhere"), await facade.post(b"")):
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
        assert {"x-request-id", "retry-after", "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"} <= set(exposed)
    _, response = await facade.stream(chat())
    assert response.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("changes", [{"cors_origins": ["https://a.example"]}])
async def test_21_cors_of_chosen_origins(facade: Facade) -> None:
    _, _, response = await facade.get("/health", headers={"Origin": "https://a.example"})
    assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert response.headers["Vary"] == "Origin"
    _, _, response = await facade.get("/health", headers={"Origin": "https://b.example"})
    assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("stop_after", [0, 1, 2], ids=["waiting", "started", "speaking"])
async def test_22_200_clients_that_time_out_free_their_slots(facade: Facade, stop_after: int) -> None:
    gate = facade.runtime.script = Gate(stop_after)
    timeout = aiohttp.ClientTimeout(total=0.5)
    clients = [facade.post(chat(stream=i % 2 == 0), timeout=timeout) for i in range(200)]
    left = await asyncio.gather(*clients, return_exceptions=True)
    assert all(isinstance(each, TimeoutError) for each in left)
    await asyncio.wait_for(facade.runtime.idle(), 5)
    gate.opened.set()
    started_s = time.monotonic()
    assert (await facade.post(chat()))[0] == 200
    assert time.monotonic() - started_s < 1


def limits_of(response: aiohttp.ClientResponse, unit: str) -> tuple[str | None, ...]:
    """The headers of one limit: limit, remaining, reset."""
    return tuple(response.headers.get(f"x-ratelimit-{what}-{unit}") for what in ("limit", "remaining", "reset"))


async def test_23_the_limit_of_requests_is_told_and_kept(clock: Clock, facade: Facade) -> None:
    headers, _ = await facade.new_key(requests_per_minute=2)
    for told in (("2", "1", "30s"), ("2", "0", "60s")):
        status, _, response = await facade.post(chat(), headers=headers)
        assert status == 200
        assert limits_of(response, "requests") == told
        assert limits_of(response, "tokens") == (None, None, None)
    clock.wait(0.5)
    status, body, response = await facade.post(chat(stream=True), headers=headers)
    assert (status, *error_of(body)) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert body["error"]["message"] == (
        "The API key's limit is 2 requests per minute: 0 are left now, and this request asks for 1."
    )
    assert response.headers["Retry-After"] == "30"
    assert limits_of(response, "requests") == ("2", "0", "59.5s")
    # Another key is not concerned.
    assert (await facade.post(chat()))[0] == 200
    clock.wait(29.5)
    assert (await facade.post(chat(), headers=headers))[0] == 200


async def test_23_tokens_of_prompt_and_answer_are_told(clock: Clock, facade: Facade) -> None:
    headers, _ = await facade.new_key(tokens_per_minute=60)
    # The fake machine counts words: three of the prompt, three of the answer. Ten were reserved for the answer.
    status, body, response = await facade.post(chat(max_tokens=10), headers=headers)
    assert (status, body["usage"]["total_tokens"]) == (200, 6)
    assert limits_of(response, "tokens") == ("60", "54", "6s")
    assert limits_of(response, "requests") == (None, None, None)


async def test_23_a_stream_tells_what_was_reserved(clock: Clock, facade: Facade) -> None:
    headers, _ = await facade.new_key(requests_per_minute=3, tokens_per_minute=60)
    # The prompt has 20 bytes with its role, and is taken for five tokens.
    _, response = await facade.stream_with(chat(max_tokens=10), headers)
    assert limits_of(response, "requests") == ("3", "2", "20s")
    assert limits_of(response, "tokens") == ("60", "45", "15s")
    _, response = await facade.stream_with(chat(n=2, max_tokens=4), headers)
    assert limits_of(response, "tokens") == ("60", "41", "19s")


async def test_23_the_wait_for_tokens_is_true(clock: Clock, facade: Facade) -> None:
    headers, _ = await facade.new_key(tokens_per_minute=60)
    assert (await facade.post(chat("w " * 20, max_tokens=19), headers=headers))[0] == 200
    for stream in (False, True):
        status, body, response = await facade.post(chat(max_tokens=30, stream=stream), headers=headers)
        assert (status, *error_of(body)) == (429, "rate_limit_error", "rate_limit_exceeded")
        assert body["error"]["message"] == (
            "The API key's limit is 60 tokens per minute: 20 are left now, and this request asks for 35."
        )
        assert response.headers["Retry-After"] == "15"
        assert limits_of(response, "tokens") == ("60", "20", "40s")
    # A smaller one needs not wait, and costs 6.
    assert (await facade.post(chat(max_tokens=15), headers=headers))[0] == 200
    clock.wait(14 + 6)
    assert (await facade.post(chat(max_tokens=30), headers=headers))[0] == 429
    clock.wait(1)
    assert (await facade.post(chat(max_tokens=30), headers=headers))[0] == 200


async def test_23_a_request_larger_than_the_limit_waits_for_all_of_it(clock: Clock, facade: Facade) -> None:
    headers, _ = await facade.new_key(tokens_per_minute=60)
    assert (await facade.post(chat(), headers=headers))[0] == 200
    status, body, response = await facade.post(chat(max_tokens=1000), headers=headers)
    assert (status, response.headers["Retry-After"]) == (429, "6")
    assert body["error"]["message"].endswith("54 are left now, and this request asks for 60.")
    clock.wait(6)
    assert (await facade.post(chat(max_tokens=1000), headers=headers))[0] == 200


async def test_23_what_was_used_beyond_the_limit_is_waited_for(clock: Clock, facade: Facade) -> None:
    headers, _ = await facade.new_key(tokens_per_minute=60)
    _, body, response = await facade.post(chat("w " * 59 + "w"), headers=headers)
    assert body["usage"]["total_tokens"] == 120
    assert limits_of(response, "tokens") == ("60", "0", "120s")
    status, _, response = await facade.post(chat("w"), headers=headers)
    # 60 are owed, and it asks for two.
    assert (status, response.headers["Retry-After"]) == (429, "62")
    clock.wait(62)
    assert (await facade.post(chat("w"), headers=headers))[0] == 200


@pytest.mark.parametrize("per_minute", [(9, 30), (1, 30_000)], ids=["tokens", "requests"])
async def test_23_what_one_limit_refuses_costs_nothing_in_the_other(
    clock: Clock, facade: Facade, per_minute: tuple[int, int]
) -> None:
    headers, _ = await facade.new_key(requests_per_minute=per_minute[0], tokens_per_minute=per_minute[1])
    _, _, before = await facade.post(chat(), headers=headers)
    for _ in range(3):
        status, _, response = await facade.post(chat(max_tokens=30), headers=headers)
        assert status == 429
        for unit in ("requests", "tokens"):
            assert limits_of(response, unit) == limits_of(before, unit)


async def test_23_the_wait_of_a_full_queue_is_rounded_up(facade: Facade) -> None:
    facade.runtime.script = failing(MantlerError(ErrorCode.QUEUE_FULL, "Full.", retry_after_s=2.5))
    _, _, response = await facade.post(chat())
    assert response.headers["Retry-After"] == "3"


async def test_24_keep_alive_survives_errors_and_pipelining_works(facade: Facade) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", facade.port)
    requests = [
        (raw_request(chat()), 200),
        (raw_request({"messages": []}), 400),
        (raw_request(None, "/nowhere", method="GET"), 404),
        (raw_request(None, "/v1/chat/completions", method="DELETE"), 405),
        (raw_request({**chat(), "model": "nope"}), 404),
        (raw_request(chat(stream=True)), 200),
        (raw_request(None, "/health", method="GET"), 200),
    ]
    writer.write(b"".join(raw for raw, _ in requests))
    for _, wanted in requests:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith(f"HTTP/1.1 {wanted} ")
        if "chunked" in head:
            body = await reader.readuntil(b"\r\n0\r\n\r\n")
            assert b"[DONE]" in body
        else:
            length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
            json.loads(await reader.readexactly(length))
    writer.close()
    await writer.wait_closed()
