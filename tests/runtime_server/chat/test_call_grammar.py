"""Grammars that force calls accept the calls that the parser reads, and nothing else."""

from __future__ import annotations

import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from mantler.errors import MantlerError
from mantler.messages import NamedTool, Tool, ToolChoice, ToolChoiceMode
from runtime_server.chat.call_grammar import forced_calls
from runtime_server.chat.formats import FORMATS, HERMES, LLAMA, MISTRAL, CallFormat, call_format
from runtime_server.chat.tool_calls import ToolCallParser

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (Tool("get", parameters=json.dumps(CITY)), Tool("put"))
GET, PUT = '{"city": "Ulm"}', '{"x": 1}'


def accepts(grammar: str, text: str) -> bool:
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert matcher.get_error() == ""
    return all(matcher.consume_token(byte) for byte in text.encode()) and matcher.is_accepting()


def written(form: CallFormat, *calls: tuple[str, str]) -> str:
    bodies = [f'{{"name": "{name}", "{form.arguments_key}": {arguments}}}' for name, arguments in calls]
    if form is HERMES:
        return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)
    return f"[TOOL_CALLS][{', '.join(bodies)}]" if form is MISTRAL else "; ".join(bodies)


@pytest.mark.parametrize("form", [HERMES, LLAMA, MISTRAL])
def test_a_grammar_accepts_calls_that_validate(form: CallFormat) -> None:
    required = forced_calls(form, TOOLS, ToolChoiceMode.REQUIRED).grammar
    both = written(form, ("get", GET), ("put", PUT))
    assert accepts(required, both)
    assert accepts(required, written(form, ("put", PUT)))
    assert not accepts(required, written(form, ("get", PUT)))
    assert not accepts(required, "Hello")
    single = forced_calls(form, TOOLS, ToolChoiceMode.REQUIRED, parallel=False).grammar
    assert accepts(single, written(form, ("get", GET)))
    assert not accepts(single, both)
    named = forced_calls(form, TOOLS, NamedTool("get")).grammar
    assert accepts(named, written(form, ("get", GET)))
    assert not accepts(named, written(form, ("put", PUT)))
    parser = ToolCallParser(form, {"get", "put"})
    parser.feed(both)
    assert parser.flush()[0] == ""
    assert parser.calls == 2


@pytest.mark.parametrize(
    ("tool", "choice", "param"),
    [
        (Tool("get"), NamedTool("put"), "tool_choice"),
        (Tool("get", parameters="{"), ToolChoiceMode.REQUIRED, "tools[0].function.parameters"),
        (Tool("get", parameters="[]"), ToolChoiceMode.REQUIRED, "tools[0].function.parameters"),
    ],
)
def test_what_cannot_be_forced_is_refused(tool: Tool, choice: ToolChoice, param: str) -> None:
    with pytest.raises(MantlerError) as caught:
        forced_calls(HERMES, (tool,), choice)
    assert caught.value.param == param


def test_the_format_follows_the_template() -> None:
    assert [call_format(f"{{{{ tools }}}} {mark}") for mark in FORMATS] == list(FORMATS.values())
    assert call_format("{{ messages }}") is HERMES


@pytest.mark.parametrize("name", ["", "a b", "é", "x" * 65])
def test_tools_have_names_that_models_can_write(name: str) -> None:
    with pytest.raises(MantlerError):
        Tool(name)
