"""The OpenAI Python SDK, a client that nobody here wrote."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from mantler.errors import ErrorCode, MantlerError
from mantler.messages import JsonSchemaConstraint
from tests.facade.conftest import KEY, MODEL, Facade
from tests.fake_runtime import failing


@pytest.fixture
async def sdk(facade: Facade) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{facade.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


async def test_models(sdk: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == ["org/other:tag", MODEL]
    assert (await sdk.models.retrieve(MODEL)).owned_by == "mantler"
    assert (await sdk.models.retrieve("org/other:tag")).id == "org/other:tag"


async def test_chat(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hello you"}], max_completion_tokens=50
    )
    assert answer.choices[0].message.content == "hello you"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 4


async def test_stream(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "hello you"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "hello you"
    assert chunks[-1].usage is not None
    async with sdk.chat.completions.stream(model=MODEL, messages=[{"role": "user", "content": "a b"}]) as helper:
        async for _ in helper:
            pass
        final = await helper.get_final_completion()
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].message.content == "a b"


async def test_choices_with_logprobs(sdk: openai.AsyncOpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "a b"}]
    answer = await sdk.chat.completions.create(model=MODEL, messages=messages, n=2, logprobs=True, top_logprobs=1)
    stream = sdk.chat.completions.stream(model=MODEL, messages=messages, n=2, logprobs=True, top_logprobs=1)
    async with stream as helper:
        async for _ in helper:
            pass
        streamed = await helper.get_final_completion()
    for completion in (answer, streamed):
        assert [choice.message.content for choice in completion.choices] == ["a b", "a b"]
        for choice in completion.choices:
            assert choice.logprobs is not None
            assert [entry.token for entry in choice.logprobs.content or ()] == ["a", " b"]


class Tower(BaseModel):
    """What a test asks for."""

    name: str
    metres: int


async def test_structured_outputs(facade: Facade, sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": '{"name":"Bell","metres":36}'}], response_format=Tower
    )
    assert answer.choices[0].message.parsed == Tower(name="Bell", metres=36)
    constraint = facade.runtime.requests[0].constraint
    assert isinstance(constraint, JsonSchemaConstraint)
    assert list(json.loads(constraint.schema)["properties"]) == ["name", "metres"]


async def test_typed_errors(facade: Facade, sdk: openai.AsyncOpenAI) -> None:
    async def ask(client: openai.AsyncOpenAI, model: str = MODEL, temperature: float = 1) -> None:
        await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "x"}], temperature=temperature
        )

    with pytest.raises(openai.BadRequestError) as bad:
        await ask(sdk, temperature=5)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError):
        await ask(sdk.with_options(api_key="mk_live_wrong"))
    headers, _ = await facade.new_key(allowed_models=("org/other:tag",), requests_per_minute=1)
    limited = sdk.with_options(api_key=headers["Authorization"].removeprefix("Bearer "))
    with pytest.raises(openai.PermissionDeniedError):
        await ask(limited)
    with pytest.raises(openai.NotFoundError):
        await ask(sdk, model="nope")
    await ask(limited, model="org/other:tag")
    with pytest.raises(openai.RateLimitError):
        await ask(limited, model="org/other:tag")
    facade.runtime.script = failing(MantlerError(ErrorCode.MACHINE_OFFLINE, "Off.", retry_after_s=1))
    with pytest.raises(openai.InternalServerError) as unavailable:
        await ask(sdk)
    assert unavailable.value.status_code == 503
