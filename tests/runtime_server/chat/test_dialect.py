"""What a chat template tells of the model's outputs."""

from __future__ import annotations

import pytest

from mantler.errors import MantlerError
from mantler.messages import ChatMessage, ChatPrompt, NamedTool, Role, Tool, ToolChoice, ToolChoiceMode
from runtime_server.chat.dialect import Dialect, Reasoning
from runtime_server.chat.formats import FORMATS, HERMES, call_format

REASONS = "{{ messages }}{% if enable_thinking %}<think>{% endif %}"
ASKED = (ChatMessage(Role.USER, "weather?"),)


def test_the_format_follows_the_template() -> None:
    assert [call_format(f"{{{{ tools }}}} {mark}") for mark in FORMATS] == list(FORMATS.values())
    assert call_format("{{ messages }}") is HERMES


@pytest.mark.parametrize(
    ("template", "end", "reasoning"),
    [
        (None, "hello", Reasoning.NONE),
        ("{{ messages }}", "<think>", Reasoning.NONE),
        (REASONS, "<|assistant|>\n", Reasoning.POSSIBLE),
        (REASONS, "<|assistant|>\n<think>\n", Reasoning.OPENED),
        (REASONS, "<think>\n\n</think>\n\n", Reasoning.NONE),
    ],
)
def test_reasoning_follows_template_and_prompt(template: str | None, end: str, reasoning: Reasoning) -> None:
    assert Dialect(template).reasoning(end) is reasoning


def test_tags_are_those_of_the_model() -> None:
    assert Dialect(None).tags == {"<tool_call>", "</tool_call>"}
    assert Dialect("{{ tools }} [TOOL_CALLS] <think>").tags == {"[TOOL_CALLS]", "<think>", "</think>"}
    assert Dialect("{{ tools }} <|python_tag|>").tags == {"<|python_tag|>"}


@pytest.mark.parametrize(
    ("tools", "choice", "reads_calls"),
    [
        ((), ToolChoiceMode.AUTO, False),
        ((Tool("get"),), ToolChoiceMode.NONE, False),
        ((Tool("get"),), ToolChoiceMode.AUTO, True),
        ((Tool("get"),), NamedTool("get"), True),
    ],
)
def test_calls_are_read_where_tools_are_offered(tools: tuple[Tool, ...], choice: ToolChoice, reads_calls: bool) -> None:
    prompt = ChatPrompt(ASKED, tools=tools, tool_choice=choice)
    output = Dialect(REASONS).output(prompt, Reasoning.NONE, b"")
    assert (output is not None) is reads_calls
    thinking = Dialect(REASONS).output(prompt, Reasoning.POSSIBLE, b"")
    assert thinking is not None
    call = '<tool_call>{"name": "get", "arguments": {}}</tool_call>'
    parts, rest = thinking.feed(f"<think>why</think>{call}"), thinking.flush()
    assert parts.reasoning == "why"
    assert bool(parts.tool_calls) is reads_calls
    assert parts.content + rest.content == ("" if reads_calls else call)


@pytest.mark.parametrize("name", ["", "a b", "é", "x" * 65])
def test_tools_have_names_that_models_can_write(name: str) -> None:
    with pytest.raises(MantlerError):
        Tool(name)
