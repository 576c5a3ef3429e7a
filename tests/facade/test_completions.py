"""Completions, whole and streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import pytest

from facade.completion_logprobs import CompletionLogprobs
from facade.merged import MAX_AT_ONCE
from facade.options import COMPLETION_NO_OPS
from facade.prompts import MAX_PROMPTS
from mantler import messages as m
from mantler.errors import ErrorCode, MantlerError, invalid
from mantler.messages import ChoiceConstraint
from tests.facade.conftest import AUTH, COMPLETIONS, MODEL, Facade, completion, error_of
from tests.fake_runtime import FINGERPRINT, Gate, Said, echo, failing


async def texts(facade: Facade, *, stream: bool, **fields: Any) -> list[str]:
    """What each choice says."""
    if not stream:
        status, body, _ = await facade.post(completion(**fields), COMPLETIONS)
        assert status == 200, body
        assert [choice["index"] for choice in body["choices"]] == list(range(len(body["choices"])))
        return [choice["text"] for choice in body["choices"]]
    data, _ = await facade.stream(completion(**fields), COMPLETIONS)
    said: dict[int, str] = {}
    for each in data[:-1]:
        for choice in json.loads(each)["choices"]:
            said[choice["index"]] = said.get(choice["index"], "") + choice["text"]
    return [said[index] for index in sorted(said)]


async def test_the_whole_answer_has_every_key(facade: Facade) -> None:
    status, body, _ = await facade.post(completion("a b", n=2), COMPLETIONS)
    assert status == 200
    assert body.pop("id").startswith("cmpl-")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "text_completion",
        "model": MODEL,
        "system_fingerprint": FINGERPRINT,
        "choices": [{"index": i, "text": "a b", "logprobs": None, "finish_reason": "stop"} for i in (0, 1)],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 4,
            "total_tokens": 6,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


async def test_chunks_have_the_shape_of_whole_answers(facade: Facade) -> None:
    data, response = await facade.stream(completion("a b", stream_options={"include_usage": True}), COMPLETIONS)
    assert response.headers["Content-Type"] == "text/event-stream"
    assert data[-1] == "[DONE]"
    chunks = [json.loads(each) for each in data[:-1]]
    assert {(each["id"], each["object"], each["model"]) for each in chunks} == {
        (chunks[0]["id"], "text_completion", MODEL)
    }
    choices = [each["choices"] for each in chunks]
    assert choices == [
        [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": " b", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}],
        [],
    ]
    assert [each["usage"] and each["usage"]["total_tokens"] for each in chunks] == [None, None, None, 4]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a b", ["a b"]),
        (["a", "b c"], ["a", "b c"]),
        ([5, 6], ["t5 t6"]),
        ([[5], [6, 7]], ["t5", "t6 t7"]),
        ([str(i) for i in range(3 * MAX_AT_ONCE)], [str(i) for i in range(3 * MAX_AT_ONCE)]),
    ],
    ids=["text", "texts", "tokens", "lists of tokens", "many"],
)
async def test_prompts_are_answered_in_their_order(facade: Facade, stream: bool, prompt: Any, said: list[str]) -> None:
    assert await texts(facade, stream=stream, prompt=prompt) == said
    assert await texts(facade, stream=stream, prompt=prompt, n=2) == [each for each in said for _ in range(2)]
    assert await texts(facade, stream=stream, prompt=prompt, echo=True) == [each * 2 for each in said]


async def test_usage_counts_each_prompt_once(facade: Facade) -> None:
    _, body, _ = await facade.post(completion(["a", "b c d"], n=2, max_tokens=2), COMPLETIONS)
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (4, 6, 10)
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "stop", "length", "length"]


async def test_parameters_reach_the_runtime(facade: Facade) -> None:
    fields = {
        "temperature": 0.5, "top_p": 0.75, "top_k": 3, "min_p": 0.125, "seed": 7, "presence_penalty": 1,
        "frequency_penalty": -1, "repetition_penalty": 1.5, "logit_bias": {"4": -100}, "max_tokens": 9,
        "min_tokens": 1, "stop": ["x"], "stop_token_ids": [3], "ignore_eos": True, "priority": 5, "logprobs": 2,
        "choice": ["a", "b"], "user": "u", "best_of": 1, "suffix": None,
    }  # fmt: skip
    assert (await facade.post(completion(**fields), COMPLETIONS))[0] == 200
    asked = facade.runtime.requests[0]
    assert asked.prompt == m.TextPrompt("one two three")
    assert asked.sampling == m.SamplingParams(0.5, 0.75, 3, 0.125, 7, 1, -1, 1.5, ((4, -100.0),))
    assert asked.stop == m.StopParams(9, 1, ("x",), (3,), True)
    assert (asked.priority, asked.logprobs, asked.n) == (5, m.LogprobsParams(2), 1)
    assert asked.constraint == ChoiceConstraint(("a", "b"))
    assert asked.cache_salt


async def test_16_tokens_are_the_default(facade: Facade) -> None:
    assert (await facade.post(completion(), COMPLETIONS))[0] == 200
    assert (await facade.post(completion(max_completion_tokens=40), COMPLETIONS))[0] == 200
    assert [request.stop.max_tokens for request in facade.runtime.requests] == [16, 40]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("top", [0, 2, 5])
async def test_logprobs_are_parallel_arrays(facade: Facade, stream: bool, top: int) -> None:
    body = completion(["a bc", "d"], logprobs=top)
    if stream:
        data, _ = await facade.stream(body, COMPLETIONS)
        choices = [choice for each in data[:-1] for choice in json.loads(each)["choices"]]
    else:
        choices = (await facade.post(body, COMPLETIONS))[1]["choices"]
    of_first = [choice["logprobs"] for choice in choices if choice["index"] == 0 and choice["logprobs"]]
    assert [token for each in of_first for token in each["tokens"]] == ["a", " bc"]
    assert [offset for each in of_first for offset in each["text_offset"]] == [0, 1]
    assert {value for each in of_first for value in each["token_logprobs"]} == {-0.5}
    for each in of_first:
        if top:
            assert all(likeliest["other"] == -1.0 and len(likeliest) == 2 for likeliest in each["top_logprobs"])
        else:
            assert each["top_logprobs"] is None


def test_offsets_count_characters_of_the_text_also_where_tokens_split_them() -> None:
    def entries(*parts: bytes) -> list[m.TokenLogprob]:
        return [m.TokenLogprob(m.TokenCandidate(1, part, -1.0)) for part in parts]

    of_choice = CompletionLogprobs(1)
    assert of_choice.next_object(entries(b"\xe6\xbc\xa2a", b"\xe2\x82"))["text_offset"] == [0, 2]
    assert of_choice.next_object(entries(b"\xac", b"b"))["text_offset"] == [2, 3]


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [None]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [1, -1]}, "prompt"),
    ({"prompt": [2**32]}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt[1]"),
    ({"prompt": [[1], "a"]}, "prompt[1]"),
    ({"prompt": [[1], []]}, "prompt[1]"),
    ({"prompt": [[1.5]]}, "prompt[0]"),
    ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, "prompt"),
    ({"prompt": ["a"] * 43, "n": 3}, "n"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"logprobs": 6}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": 1}, "echo"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"min_tokens": 17}, "min_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"model": ""}, "model"),
]


@pytest.mark.parametrize(("fields", "param"), INVALID, ids=repr)
async def test_bad_requests_name_the_parameter(facade: Facade, fields: dict[str, Any], param: str) -> None:
    status, body, _ = await facade.post({**completion(), **fields}, COMPLETIONS)
    assert (status, *error_of(body)) == (400, "invalid_request_error", "invalid_parameter")
    assert body["error"]["param"] == param
    assert not facade.runtime.requests


async def test_options_that_cannot_be_honoured_are_refused_by_name(facade: Facade) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [(name, {name: {"ask": 1}}) for name in COMPLETION_NO_OPS]
    wrong += [
        ("best_of", {"best_of": 3}),
        ("best_of", {"best_of": 1, "n": 2}),
        ("logprobs", {"logprobs": 1, "echo": True}),
    ]
    for name, fields in wrong:
        status, body, _ = await facade.post(completion(**fields), COMPLETIONS)
        assert (status, body["error"]["code"], body["error"]["param"]) == (400, "unsupported_parameter", name)
    assert (await facade.post(completion(n=2, best_of=2), COMPLETIONS))[0] == 200


async def test_the_runtime_speaks_of_prompts_not_of_messages(facade: Facade) -> None:
    facade.runtime.script = failing(m.context_exceeded(9000, 8192))
    _, body, _ = await facade.post(completion(), COMPLETIONS)
    assert (body["error"]["code"], body["error"]["param"]) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize("stream", [False, True])
async def test_one_bad_prompt_ends_all(facade: Facade, stream: bool) -> None:
    arrived = asyncio.Barrier(3)

    async def script(request: m.GenerateRequest) -> AsyncGenerator[Said, None]:
        await arrived.wait()
        if request.prompt == m.TextPrompt("bad"):
            raise invalid("max_tokens", "must be at most 10 after this prompt.")
        await asyncio.Event().wait()
        yield m.Started(request.model, 1)

    facade.runtime.script = script
    body = completion(["good", "bad", "good"], max_completion_tokens=12, stream=stream)
    status, answer, _ = await facade.post(body, COMPLETIONS)
    assert (status, answer["error"]["param"]) == (400, "max_completion_tokens")
    await asyncio.wait_for(facade.runtime.idle(), 5)
    assert facade.runtime.cancelled == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_every_prompt(facade: Facade, stream: bool) -> None:
    gates = [Gate(stop_after=1) for _ in range(3)]
    left = iter(gates)
    facade.runtime.script = lambda request: next(left)(request)
    asking = asyncio.create_task(facade.post(completion(["a", "b", "c"], stream=stream), COMPLETIONS))
    await asyncio.gather(*(gate.reached.wait() for gate in gates))
    asking.cancel()
    await asyncio.wait([asking])
    await asyncio.wait_for(facade.runtime.idle(), 5)
    assert facade.runtime.cancelled == 3


async def test_the_runtime_has_a_bounded_number_of_prompts_at_once(facade: Facade) -> None:
    most = 0

    async def script(request: m.GenerateRequest) -> AsyncGenerator[Said, None]:
        nonlocal most
        most = max(most, facade.runtime.active)
        async for said in echo(request):
            yield said

    facade.runtime.script = script
    assert await texts(facade, stream=False, prompt=["x"] * MAX_PROMPTS) == ["x"] * MAX_PROMPTS
    assert most <= MAX_AT_ONCE


async def test_failures_before_and_after_the_first_event(facade: Facade) -> None:
    full = MantlerError(ErrorCode.QUEUE_FULL, "Full.", retry_after_s=2.0)
    facade.runtime.script = failing(full)
    status, _, response = await facade.post(completion(stream=True), COMPLETIONS)
    assert (status, response.headers["Retry-After"]) == (429, "2")
    facade.runtime.script = failing(full, after=(m.Started(MODEL, 1), m.Delta("a", (1,))))
    data, _ = await facade.stream(completion(), COMPLETIONS)
    assert json.loads(data[0])["choices"][0]["text"] == "a"
    assert json.loads(data[1])["error"]["code"] == "queue_full"
    assert len(data) == 2


@pytest.mark.parametrize("changes", [{"ping_interval_s": 0.05}])
async def test_silence_gets_comments(facade: Facade) -> None:
    gate = facade.runtime.script = Gate(stop_after=0)
    async with facade.http.post(
        f"{facade.url}{COMPLETIONS}", json=completion(stream=True), headers=AUTH, timeout=aiohttp.ClientTimeout(10)
    ) as response:
        assert await response.content.readuntil(b"\n\n") == b": ping\n\n"
        gate.opened.set()
        assert (await response.text()).endswith("data: [DONE]\n\n")


async def test_keys_and_models_are_those_of_conversations(facade: Facade) -> None:
    assert (await facade.post(completion(), COMPLETIONS, headers={}))[0] == 401
    other, _ = await facade.new_key(allowed_models=("org/other:tag",))
    assert (await facade.post(completion(), COMPLETIONS, headers=other))[0] == 403
    assert (await facade.post({**completion(), "model": "nope"}, COMPLETIONS))[0] == 404
    once, _ = await facade.new_key(requests_per_minute=1)
    assert (await facade.post(completion(["a", "b"]), COMPLETIONS, headers=once))[0] == 200
    assert (await facade.post(completion(), COMPLETIONS, headers=once))[0] == 429
