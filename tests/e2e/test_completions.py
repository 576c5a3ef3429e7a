"""Completions and tokens on the real model, with OpenAI's SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError

from tests.default_model import DEFAULT_MODEL
from tests.e2e.conftest import Mesh

pytestmark = [pytest.mark.e2e, pytest.mark.model]

PROMPT = "The capital of France is"
PROMPTS = [PROMPT, "One, two, three,", "漢字 ist"]
GREEDY: dict[str, Any] = {"model": DEFAULT_MODEL, "temperature": 0, "max_tokens": 12}


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key=mesh.key, max_retries=0) as made:
        yield made


async def post(client: AsyncOpenAI, path: str, **fields: Any) -> Any:
    return await client.post(path, body={"model": DEFAULT_MODEL, **fields}, cast_to=object)


async def test_tokens_there_and_back(client: AsyncOpenAI) -> None:
    for text in PROMPTS:
        counted = await post(client, "/tokenize", prompt=text)
        assert counted["count"] == len(counted["tokens"])
        assert (await post(client, "/detokenize", tokens=counted["tokens"]))["prompt"] == text
    chat = await post(client, "/tokenize", messages=[{"role": "user", "content": PROMPT}])
    rendered = (await post(client, "/detokenize", tokens=chat["tokens"]))["prompt"]
    assert PROMPT in rendered
    assert (await post(client, "/tokenize", prompt=rendered))["tokens"] == chat["tokens"]


async def test_text_tokens_streams_and_many_prompts_say_the_same(client: AsyncOpenAI) -> None:
    alone = [await client.completions.create(prompt=prompt, **GREEDY) for prompt in PROMPTS]
    said = [answer.choices[0].text for answer in alone]
    together = await client.completions.create(prompt=PROMPTS, **GREEDY)
    assert [choice.text for choice in together.choices] == said
    assert [choice.finish_reason for choice in together.choices] == ["length"] * 3
    assert together.usage is not None
    assert together.usage.completion_tokens == 36
    assert together.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in alone if answer.usage)
    token_ids = [(await post(client, "/tokenize", prompt=prompt))["tokens"] for prompt in PROMPTS]
    of_tokens = await client.completions.create(prompt=token_ids, echo=True, **GREEDY)
    assert [choice.text for choice in of_tokens.choices] == [a + b for a, b in zip(PROMPTS, said, strict=True)]
    streamed = ["", "", ""]
    async for chunk in await client.completions.create(prompt=PROMPTS, stream=True, **GREEDY):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == said


async def test_logprobs_lie_where_the_text_has_them(client: AsyncOpenAI) -> None:
    choice = (await client.completions.create(prompt=PROMPT, logprobs=3, **GREEDY)).choices[0]
    found = choice.logprobs
    assert found is not None
    assert found.tokens
    assert found.text_offset
    assert found.token_logprobs
    assert found.top_logprobs
    assert "".join(found.tokens) == choice.text
    for token, offset, logprob, top in zip(
        found.tokens, found.text_offset, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert choice.text[offset:].startswith(token)
        # Without a temperature the likeliest is chosen.
        assert top[token] == logprob == max(top.values())
        assert len(top) == 3


async def test_a_constraint_holds_and_a_prompt_too_long_is_named(client: AsyncOpenAI) -> None:
    made = await client.completions.create(prompt=PROMPT, extra_body={"choice": [" Rome", " Paris"]}, **GREEDY)
    assert made.choices[0].text in (" Rome", " Paris")
    with pytest.raises(BadRequestError) as raised:
        await client.completions.create(prompt=[PROMPT, "word " * 20_000], **GREEDY)
    assert (raised.value.param, raised.value.code) == ("prompt", "context_length_exceeded")
