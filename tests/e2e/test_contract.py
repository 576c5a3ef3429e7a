"""What only a real model can show of the REST contract. The rest of it is in ``tests/facade/test_contract_*.py``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jsonschema
import pytest

from tests.e2e.conftest import Mesh
from tests.e2e.rest import Rest, content

pytestmark = [pytest.mark.e2e, pytest.mark.model]

PROMPT = "Write a sentence about a lighthouse."
ODD = "Repeat exactly: 🗼 naïve 東京 ❤️ – żółw"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "metres": {"type": "integer", "minimum": 1, "maximum": 200},
        "colours": {"type": "array", "items": {"enum": ["red", "white"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "metres", "colours"],
    "additionalProperties": False,
}


@pytest.fixture
async def rest(mesh: Mesh) -> AsyncIterator[Rest]:
    async with aiohttp.ClientSession() as http:
        yield Rest(http, mesh)


def joined(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """The text of a choice of a stream."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_05_a_bound_ends_the_output_and_is_its_length(rest: Rest, name: str) -> None:
    answer = await rest.answer(PROMPT, **{"max_tokens": None, name: 5})
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5
    status, body = await rest.post(PROMPT, **{"max_tokens": None, name: 10**6})
    assert (status, body["error"]["param"]) == (400, name)


async def test_07_joined_deltas_are_the_whole_text(rest: Rest) -> None:
    answer = await rest.answer(PROMPT, n=2)
    chunks = await rest.chunks(PROMPT, n=2, stream_options={"include_usage": True})
    assert [joined(chunks, index) for index in (0, 1)] == [content(answer, index) for index in (0, 1)]
    told, wanted = chunks[-1]["usage"], answer["usage"]
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [told[name] for name in counts] == [wanted[name] for name in counts]


async def test_08_a_prompt_that_is_too_long_is_400_even_when_streaming(rest: Rest) -> None:
    for stream in (False, True):
        status, body = await rest.post("word " * 20_000, stream=stream, max_tokens=None)
        assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
        assert body["error"]["param"] == "messages"


async def test_10_characters_come_whole(rest: Rest) -> None:
    values = ["🗼", "東京", "żółw", "é🇯🇵❤️"]
    for value in values:
        chunks = await rest.chunks(ODD, choice=[value])
        deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
        assert "".join(deltas) == value
        assert not any("\ufffd" in delta for delta in deltas)


async def test_11_stop_strings_and_their_beginnings_are_not_sent(rest: Rest) -> None:
    whole = content(await rest.answer(PROMPT))
    for stop in (whole[9:15], [whole[12:14], "never said"], whole[5:20]):
        first = stop if isinstance(stop, str) else stop[0]
        expected = whole[: whole.index(first)]
        answer = await rest.answer(PROMPT, stop=stop)
        assert (content(answer), answer["choices"][0]["finish_reason"]) == (expected, "stop")
        assert joined(await rest.chunks(PROMPT, stop=stop)) == expected


async def test_12_template_tokens_never_reach_the_content(rest: Rest) -> None:
    answer = await rest.answer("Answer with one word: what colour is snow?", max_tokens=200)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert "<|im" not in content(answer)
    on = await rest.answer("Answer with one word: what colour is snow?", ignore_eos=True, max_tokens=40)
    assert on["choices"][0]["finish_reason"] == "length"
    assert "<|im" not in content(on)


async def test_13_tokens_concatenate_to_the_content(rest: Rest) -> None:
    answer = await rest.answer(PROMPT, logprobs=True, top_logprobs=3, max_tokens=12)
    entries = answer["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == content(answer).encode()
    assert len(entries) == answer["usage"]["completion_tokens"] == 12
    for entry in entries:
        likeliest = [each["logprob"] for each in entry["top_logprobs"]]
        assert len(likeliest) == 3
        assert 0 >= entry["logprob"] == max(likeliest), "greedy takes the likeliest"
        assert likeliest == sorted(likeliest, reverse=True)
    chunks = await rest.chunks(PROMPT, logprobs=True, top_logprobs=3, max_tokens=12)
    streamed = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
    assert [entry for each in streamed for entry in each["content"]] == entries


async def test_14_a_seed_repeats_alone_and_under_load(rest: Rest) -> None:
    def ask(seed: int, **fields: Any) -> Any:
        return rest.answer(PROMPT, temperature=1, seed=seed, **fields)

    alone = content(await ask(7))
    together = await asyncio.gather(*(ask(seed) for seed in [7, *range(20), 7]))
    texts = [content(answer) for answer in together]
    assert texts[0] == texts[8] == texts[-1] == alone
    assert len(set(texts[1:-1])) == 20
    several = await ask(7, n=3)
    assert content(several) == alone
    assert len({content(several, index) for index in range(3)}) == 3


@pytest.mark.parametrize("strict", [True, False])
async def test_15_json_schema_output_validates(rest: Rest, strict: bool) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "tower", "schema": SCHEMA, "strict": strict}}
    asked = {"response_format": response_format, "temperature": 1, "max_tokens": 120}
    answers = await asyncio.gather(*(rest.answer(PROMPT, seed=seed, n=2, **asked) for seed in range(8)))
    choices = [choice for answer in answers for choice in answer["choices"]]
    done = [choice for choice in choices if choice["finish_reason"] != "length"]
    assert len(done) >= len(choices) // 2
    for choice in done:
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


async def test_15_json_object_output_is_an_object(rest: Rest) -> None:
    answer = await rest.answer(PROMPT, response_format={"type": "json_object"}, max_tokens=200)
    if answer["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(content(answer)), dict)
    else:
        assert content(answer).lstrip().startswith("{")


async def test_15_the_other_forms(rest: Rest) -> None:
    assert content(await rest.answer(PROMPT, regex="[0-9]{3}-[a-c]")).count("-") == 1
    assert content(await rest.answer(PROMPT, guided_choice=["lamp", "stone"])) in ("lamp", "stone")
    assert content(await rest.answer(PROMPT, grammar='start: "a" ("b" | "c")')) in ("ab", "ac")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}}},
         "response_format.json_schema.schema"),
        ({"guided_json": {"type": "strin"}}, "guided_json"),
        ({"regex": "("}, "regex"),
        ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs.grammar"),
        ({"response_format": {"type": "json"}}, "response_format.type"),
    ],
)  # fmt: skip
async def test_15_what_cannot_be_kept_is_refused_by_name(rest: Rest, fields: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        status, body = await rest.post(PROMPT, stream=stream, **fields)
        assert (status, body["error"]["param"]) == (400, param)
        assert body["error"]["message"].startswith(param)
