"""The contract of answers: choices, limits, log probabilities, usage."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mantler import messages as m
from mantler.errors import invalid
from tests.facade.conftest import MODEL, Facade, chat
from tests.fake_runtime import FINGERPRINT, Said


async def choices(facade: Facade, *, stream: bool, **fields: Any) -> list[dict[str, Any]]:
    """The choices of an answer, or of each chunk of it."""
    if not stream:
        status, body, _ = await facade.post(chat(**fields))
        assert status == 200, body
        made: list[dict[str, Any]] = body["choices"]
        return made
    data, _ = await facade.stream(chat(**fields))
    return [choice for each in data[:-1] for choice in json.loads(each)["choices"]]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_05_both_limits_bound_the_output(facade: Facade, name: str) -> None:
    _, body, _ = await facade.post(chat("a b c d", **{name: 2}))
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [0, -1])
async def test_05_limits_below_1_are_refused_by_name(facade: Facade, name: str, value: int) -> None:
    status, body, _ = await facade.post({**chat(), name: value})
    assert (status, body["error"]["param"]) == (400, name)
    assert body["error"]["message"] == f"{name}: must be between 1 and 2147483647, got {value}."


async def test_05_the_runtime_refuses_the_limit_that_the_client_gave(facade: Facade) -> None:
    async def script(_: m.GenerateRequest) -> AsyncGenerator[Said, None]:
        raise invalid("max_tokens", "must be at most 10 after this prompt.")
        yield

    facade.runtime.script = script
    _, body, _ = await facade.post(chat(max_tokens=70, max_completion_tokens=50))
    assert body["error"]["param"] == "max_completion_tokens"
    assert body["error"]["message"] == "max_completion_tokens: must be at most 10 after this prompt."


@pytest.mark.parametrize("stream", [False, True])
async def test_13_logprobs_are_null_unless_asked_for(facade: Facade, stream: bool) -> None:
    for fields in ({}, {"logprobs": False}, {"logprobs": None, "top_logprobs": 0}):
        made = await choices(facade, stream=stream, **fields)
        assert [choice["logprobs"] for choice in made] == [None] * len(made)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("top", [None, 0, 2, 20])
async def test_13_logprobs_are_of_the_content(facade: Facade, stream: bool, top: int | None) -> None:
    made = await choices(facade, stream=stream, logprobs=True, top_logprobs=top)
    given = [choice["logprobs"] for choice in made if choice["logprobs"] is not None]
    entries = [entry for each in given for entry in each["content"]]
    assert all(set(each) == {"content", "refusal"} and each["refusal"] is None for each in given)
    assert "".join(entry["token"] for entry in entries) == "one two three"
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == b"one two three"
    for entry in entries:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == (top or 0)
        assert all(set(each) == {"token", "logprob", "bytes"} for each in entry["top_logprobs"])
    assert len(given) == (3 if stream else 1)


async def test_13_bytes_are_exact_where_a_token_is_no_character(facade: Facade) -> None:
    async def script(request: m.GenerateRequest) -> AsyncGenerator[Said, None]:
        first, second = (m.TokenLogprob(m.TokenCandidate(1, part, -1.0)) for part in (b" \xe2\x82", b"\xac"))
        yield m.Started(request.model, 1)
        yield m.Delta(" ", (1,))
        yield m.Delta("€", (2,), (first, second))
        yield m.Finished(m.FinishReason.STOP, m.Usage(1, 2))

    facade.runtime.script = script
    made = await choices(facade, stream=False, logprobs=True)
    first, second = made[0]["logprobs"]["content"]
    assert (first["token"], first["bytes"]) == (" \\xe2\\x82", [0x20, 0xE2, 0x82])
    assert (second["token"], second["bytes"]) == ("\\xac", [0xAC])


@pytest.mark.parametrize("fields", [{"logprobs": True, "top_logprobs": 21}, {"top_logprobs": 2}])
async def test_13_top_logprobs_has_a_range_and_needs_logprobs(facade: Facade, fields: dict[str, Any]) -> None:
    status, body, _ = await facade.post(chat(**fields))
    assert (status, body["error"]["param"]) == (400, "top_logprobs")


async def test_14_the_seed_is_64_bits_and_reaches_the_runtime(facade: Facade) -> None:
    for seed in (0, 1, -1, -(2**63), 2**63 - 1):
        assert (await facade.post(chat(seed=seed)))[0] == 200
    assert [request.sampling.seed for request in facade.runtime.requests] == [0, 1, 2**64 - 1, 2**63, 2**63 - 1]


async def test_18_the_whole_answer_has_every_key(facade: Facade) -> None:
    status, body, response = await facade.post(chat("one two three", n=2))
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
                "index": index,
                "message": {"role": "assistant", "content": "one two three", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
            for index in (0, 1)
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 6,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


async def test_18_choices_are_put_together_by_index(facade: Facade) -> None:
    async def mixed(request: m.GenerateRequest) -> AsyncGenerator[Said, None]:
        yield 1, m.Started(request.model, 5, 3)
        yield 1, m.Delta("b", (1,))
        yield 0, m.Started(request.model, 5, 2)
        yield 0, m.Delta("a", (1,))
        yield 1, m.Finished(m.FinishReason.LENGTH, m.Usage(5, 1, 5))
        yield 0, m.Delta("a", (2,))
        yield 0, m.Finished(m.FinishReason.STOP, m.Usage(5, 2, 2))

    facade.runtime.script = mixed
    _, body, _ = await facade.post(chat(n=2))
    seen = [(each["index"], each["message"]["content"], each["finish_reason"]) for each in body["choices"]]
    assert seen == [(0, "aa", "stop"), (1, "b", "length")]
    assert body["usage"]["prompt_tokens"] == 5
    assert body["usage"]["completion_tokens"] == 3
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
