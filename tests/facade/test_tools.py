"""Tools, calls and reasoning over REST: rules 16 and 17 of the contract, and what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest

from mantler import messages as m
from tests.facade.conftest import KEY, MODEL, Facade, chat
from tests.fake_runtime import Said

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "time", "strict": True}}
TOOLS = [WEATHER, TIME]
NAMED = {"type": "function", "function": {"name": "weather"}}


async def two_calls(request: m.GenerateRequest) -> AsyncGenerator[Said, None]:
    """Thinks, says a word and calls both tools."""
    yield m.Started(request.model, 7, fingerprint="f")
    yield m.Delta("", (1,), reasoning="Hm, ")
    yield m.Delta("", (2,), reasoning='"é".')
    yield m.Delta("Well.", (3,))
    yield m.Delta("", (4, 5), tool_calls=(m.ToolCallDelta(0, "", "call_a", "weather"), m.ToolCallDelta(0, '{"city"')))
    yield m.Delta("", (6,), tool_calls=(m.ToolCallDelta(0, ': "Ulm"}'), m.ToolCallDelta(1, "", "call_b", "time")))
    yield m.Delta("", (7,), tool_calls=(m.ToolCallDelta(1, "{}"),))
    yield m.Finished(m.FinishReason.TOOL_CALLS, m.Usage(7, 8, reasoning_tokens=2))


async def one_call(request: m.GenerateRequest) -> AsyncGenerator[Said, None]:
    """Calls a tool and says nothing."""
    named = isinstance(request.prompt, m.ChatPrompt) and isinstance(request.prompt.tool_choice, m.NamedTool)
    yield m.Started(request.model, 7)
    yield m.Delta("", (1,), tool_calls=(m.ToolCallDelta(0, "", "call_a", "weather"),))
    yield m.Delta("", (2,), tool_calls=(m.ToolCallDelta(0, '{"city": "Ulm"}'),))
    yield m.Finished(m.FinishReason.STOP if named else m.FinishReason.TOOL_CALLS, m.Usage(7, 2))


def deltas(data: list[str]) -> list[dict[str, Any]]:
    assert data[-1] == "[DONE]"
    return [json.loads(each)["choices"][0]["delta"] for each in data[:-1]]


async def test_16_a_call_begins_once_and_goes_on_by_index(facade: Facade) -> None:
    facade.runtime.script = two_calls
    data, _ = await facade.stream(chat(tools=TOOLS))
    made = deltas(data)
    assert made[0] == {"role": "assistant", "content": "", "refusal": None}
    assert [each["reasoning_content"] for each in made if "reasoning_content" in each] == ["Hm, ", '"é".']
    assert [each["content"] for each in made[1:] if "content" in each] == ["Well."]
    parts = [part for each in made for part in each.get("tool_calls", ())]
    assert parts == [
        {"index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city"'}},
        {"index": 0, "function": {"arguments": ': "Ulm"}'}},
        {"index": 1, "id": "call_b", "type": "function", "function": {"name": "time", "arguments": ""}},
        {"index": 1, "function": {"arguments": "{}"}},
    ]
    assert json.loads(data[-2])["choices"][0]["finish_reason"] == "tool_calls"


async def test_17_whole_answers_put_calls_together(facade: Facade) -> None:
    facade.runtime.script = two_calls
    _, body, _ = await facade.post(chat(tools=TOOLS))
    choice = body["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": "Well.",
        "refusal": None,
        "reasoning_content": 'Hm, "é".',
        "tool_calls": [
            {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}},
            {"id": "call_b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        ],
    }
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


@pytest.mark.parametrize(
    ("choice", "reason"), [(None, "tool_calls"), ("auto", "tool_calls"), ("required", "tool_calls"), (NAMED, "stop")]
)
async def test_17_content_is_null_beside_calls(facade: Facade, choice: Any, reason: str) -> None:
    facade.runtime.script = one_call
    _, body, _ = await facade.post(chat(tools=TOOLS, tool_choice=choice))
    assert body["choices"][0]["message"]["content"] is None
    assert body["choices"][0]["finish_reason"] == reason


async def test_tools_reach_the_runtime(facade: Facade) -> None:
    status, _, _ = await facade.post(
        chat(tools=TOOLS, tool_choice=NAMED, parallel_tool_calls=False, chat_template_kwargs={"enable_thinking": False})
    )
    assert status == 200
    prompt = facade.runtime.requests[0].prompt
    assert isinstance(prompt, m.ChatPrompt)
    assert prompt.tools == (
        m.Tool("weather", "Tells it.", json.dumps(SCHEMA)),
        m.Tool("time", strict=True),
    )
    assert prompt.tool_choice == m.NamedTool("weather")
    assert prompt.parallel_tool_calls is False
    assert prompt.template_variables == {"enable_thinking": False}


async def test_what_is_not_said_is_auto_and_parallel(facade: Facade) -> None:
    fields: dict[str, Any]
    for fields in ({"tools": TOOLS}, {"tools": TOOLS, "tool_choice": None, "parallel_tool_calls": None}):
        await facade.post(chat(**fields))
        prompt = facade.runtime.requests[-1].prompt
        assert isinstance(prompt, m.ChatPrompt)
        assert (prompt.tool_choice, prompt.parallel_tool_calls) == (m.ToolChoiceMode.AUTO, True)
    for fields in ({"tools": []}, {"tools": None}, {"tool_choice": "none"}, {"tool_choice": "auto"}):
        status, _, _ = await facade.post(chat(**fields))
        assert status == 200


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [3]}, "tools[0]"),
        ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [{"type": "x"}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [WEATHER, {"type": "function", "function": []}]}, "tools[1].function"),
        ({"tools": [tool(name=None)]}, "tools[0].function.name"),
        ({"tools": [tool(name="a b")]}, "tools[0].function"),
        ({"tools": [tool(name="x" * 65)]}, "tools[0].function"),
        ({"tools": [tool(parameters="{}")]}, "tools[0].function.parameters"),
        ({"tools": [tool(strict="yes")]}, "tools[0].function.strict"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [tool(name=f"f{i}") for i in range(129)]}, "tools"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": TOOLS, "tool_choice": tool(name="other")}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {str(i): i for i in range(65)}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": json.loads("[" * 40 + "]" * 40)}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": {"b": [1] * 10_000}}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": [10**400]}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": -(2**53)}}, "chat_template_kwargs"),
    ],
)
async def test_wrong_tools_are_refused_by_name(facade: Facade, fields: dict[str, Any], param: str) -> None:
    status, body, _ = await facade.post(chat(**fields))
    assert (status, body["error"]["param"]) == (400, param)
    assert body["error"]["message"].startswith(param)
    assert facade.runtime.requests == []


async def test_the_openai_package_puts_streamed_calls_together(facade: Facade) -> None:
    facade.runtime.script = two_calls
    async with (
        openai.AsyncOpenAI(base_url=f"{facade.url}/v1", api_key=KEY, max_retries=0) as sdk,
        sdk.chat.completions.stream(model=MODEL, messages=[{"role": "user", "content": "?"}], tools=TOOLS) as stream,  # type: ignore[arg-type]
    ):
        message = (await stream.get_final_completion()).choices[0].message
    assert message.tool_calls is not None
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == [
        ("weather", '{"city": "Ulm"}'),
        ("time", "{}"),
    ]
