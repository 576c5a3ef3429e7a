"""The same request over REST and over gRPC gives the same tokens, usage and finish reason."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from google.protobuf import json_format

from mantler import wire
from mantler.client import RuntimeClient
from mantler.messages import (
    ChatMessage,
    ChatPrompt,
    Delta,
    Event,
    Finished,
    GenerateRequest,
    JsonSchemaConstraint,
    LogprobsParams,
    Role,
    SamplingParams,
    StopParams,
    Tool,
    ToolChoiceMode,
)
from mantler.v1 import generation_pb2
from tests.default_model import DEFAULT_MODEL
from tests.e2e.conftest import Mesh
from tests.e2e.rest import Rest

pytestmark = [pytest.mark.e2e, pytest.mark.model]

PROMPT = "Name three colours of the sea."
SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["blue", "green"]}}, "required": ["colour"]}


@dataclass(slots=True)
class Said:
    """One choice: what both ways tell of it."""

    text: str = ""
    reason: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Names and arguments. Ids are random."""
    tokens: list[tuple[bytes, float]] = field(default_factory=list)


@dataclass(slots=True)
class Answer:
    """All of an answer."""

    choices: list[Said]
    prompt_tokens: int
    completion_tokens: int


@pytest.fixture
async def rest(mesh: Mesh) -> AsyncIterator[Rest]:
    async with aiohttp.ClientSession() as http:
        yield Rest(http, mesh)


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[RuntimeClient]:
    async with RuntimeClient(mesh.runtime) as opened:
        yield opened


@pytest.fixture
async def edge(mesh: Mesh) -> AsyncIterator[RuntimeClient]:
    async with RuntimeClient(mesh.grpc, api_key=mesh.key) as opened:
        yield opened


async def over_rest(rest: Rest, fields: dict[str, Any]) -> Answer:
    answer = await rest.answer(PROMPT, **fields)
    choices = [
        Said(
            choice["message"]["content"] or "",
            choice["finish_reason"],
            [
                (call["function"]["name"], call["function"]["arguments"])
                for call in choice["message"].get("tool_calls", ())
            ],
            [(bytes(entry["bytes"]), entry["logprob"]) for entry in (choice["logprobs"] or {"content": []})["content"]],
        )
        for choice in answer["choices"]
    ]
    return Answer(choices, answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])


async def over_grpc(client: RuntimeClient, asked: GenerateRequest) -> Answer:
    async with aclosing(client.generate(asked, 100.0)) as events:
        return collected(asked, [event async for event in events])


async def as_json(mesh: Mesh, asked: GenerateRequest) -> Answer:
    """At the edge, as JSON over HTTP."""
    url, headers = f"{mesh.url}/mantler.v1.GenerationService/Generate", {"Authorization": f"Bearer {mesh.key}"}
    body = json_format.MessageToDict(wire.request_to_proto(asked))
    async with aiohttp.ClientSession() as http, http.post(url, json=body, headers=headers) as response:
        text = await response.text()
    assert response.status == 200, text
    data = [block.removeprefix("data: ") for block in text.split("\n\n") if block.startswith("data: ")]
    messages = [json_format.Parse(each, generation_pb2.GenerateResponse()) for each in data]
    return collected(asked, [wire.event_from_proto(message) for message in messages])


def collected(asked: GenerateRequest, events: list[Event]) -> Answer:
    answer = Answer([Said() for _ in range(asked.n)], 0, 0)
    for event in events:
        choice, body = answer.choices[event.index], event.body
        if isinstance(body, Delta):
            choice.text += body.text
            for part in body.tool_calls:
                if part.name is not None:
                    choice.calls.append((part.name, ""))
                name, arguments = choice.calls[part.index]
                choice.calls[part.index] = (name, arguments + part.arguments)
            choice.tokens += [(entry.chosen.token_bytes, entry.chosen.logprob) for entry in body.logprobs]
        elif isinstance(body, Finished):
            choice.reason = body.reason.value
            answer.prompt_tokens = body.usage.prompt_tokens
            answer.completion_tokens += body.usage.completion_tokens
    return answer


def request(*, tools: tuple[Tool, ...] = (), **fields: Any) -> GenerateRequest:
    choice = ToolChoiceMode.REQUIRED if tools else ToolChoiceMode.AUTO
    prompt = ChatPrompt((ChatMessage(Role.USER, PROMPT),), tools=tools, tool_choice=choice)
    given = {"sampling": SamplingParams(temperature=0), "stop": StopParams(max_tokens=32), **fields}
    return GenerateRequest("both-ways", DEFAULT_MODEL, prompt, **given)


PAIRS: dict[str, tuple[dict[str, Any], GenerateRequest]] = {
    "plain": ({}, request()),
    "n": (
        {"n": 2, "temperature": 1, "seed": 5},
        request(n=2, sampling=SamplingParams(temperature=1, seed=5)),
    ),
    "logprobs": (
        {"logprobs": True, "top_logprobs": 2, "logit_bias": {"28": -5}, "presence_penalty": 0.5},
        request(
            logprobs=LogprobsParams(2),
            sampling=SamplingParams(temperature=0, logit_bias=((28, -5.0),), presence_penalty=0.5),
        ),
    ),
    "json_schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "sea", "schema": SCHEMA}}},
        request(constraint=JsonSchemaConstraint(json.dumps(SCHEMA))),
    ),
    "tools": (
        {
            "tools": [{"type": "function", "function": {"name": "paint", "parameters": SCHEMA}}],
            "tool_choice": "required",
            "max_tokens": 100,
            "n": 2,
            "temperature": 1,
            "seed": 3,
        },
        request(
            tools=(Tool("paint", parameters=json.dumps(SCHEMA)),),
            n=2,
            sampling=SamplingParams(temperature=1, seed=3),
            stop=StopParams(max_tokens=100),
        ),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
async def test_all_ways_agree(rest: Rest, mesh: Mesh, client: RuntimeClient, edge: RuntimeClient, name: str) -> None:
    fields, asked = PAIRS[name]
    there = await over_rest(rest, fields)
    assert there == await over_grpc(client, asked)
    assert there == await over_grpc(edge, asked)
    assert there == await as_json(mesh, asked)
    assert len(there.choices) == asked.n
    assert there.completion_tokens > 0
    assert bool(there.choices[0].calls) == (name == "tools")
    assert bool(there.choices[0].tokens) == (asked.logprobs is not None)


async def test_leaving_the_edge_frees_the_slot(client: RuntimeClient, edge: RuntimeClient) -> None:
    endless = request(stop=StopParams(max_tokens=4000, ignore_eos=True))
    async with aclosing(edge.generate(endless, 100.0)) as events:
        async for event in events:
            if isinstance(event.body, Delta):
                break
        assert await used(client) == 1
    async with asyncio.timeout(10):
        while await used(client):
            pass


async def used(client: RuntimeClient) -> int:
    """Slots of the model that are taken."""
    deployment = (await client.get_model(DEFAULT_MODEL)).deployment
    assert deployment is not None
    return deployment.slots_used
