"""Grammars of outputs with calls accept what the parser reads, and nothing that a schema forbids."""

from __future__ import annotations

import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from mantler.errors import MantlerError
from mantler.messages import (
    JSON_SCHEMA_PARAM,
    ChatMessage,
    ChatPrompt,
    Constraint,
    GrammarConstraint,
    JsonSchemaConstraint,
    NamedTool,
    Role,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)
from runtime_server.chat.dialect import Reasoning
from runtime_server.chat.formats import HERMES, LLAMA, MISTRAL, CallFormat
from runtime_server.chat.tool_calls import ToolCallParser, call_ids
from runtime_server.constraints.calls import forced_calls, strict_calls
from runtime_server.constraints.grammar import grammar_text
from runtime_server.constraints.outline import Outline, outline

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (Tool("get", parameters=json.dumps(CITY), strict=True), Tool("put"))
GET, PUT = '{"city": "Ulm"}', '{"x": 1}'
FORMS = pytest.mark.parametrize("form", [HERMES, LLAMA, MISTRAL])
ANSWER = JsonSchemaConstraint('{"type": "array", "items": {"type": "integer"}}')


def accepts(constraint: Constraint | Outline, text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), grammar_text(constraint), log_level=0)
    assert matcher.get_error() == ""
    return all(matcher.consume_token(byte) for byte in text.encode()) and matcher.is_accepting()


def written(form: CallFormat, *calls: tuple[str, str]) -> str:
    bodies = [f'{{"name": "{name}", "{form.arguments_key}": {arguments}}}' for name, arguments in calls]
    if form is HERMES:
        return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)
    return f"[TOOL_CALLS][{', '.join(bodies)}]" if form is MISTRAL else "; ".join(bodies)


@FORMS
def test_forced_calls_are_calls_that_validate(form: CallFormat) -> None:
    required = GrammarConstraint(forced_calls(form, TOOLS, several=True))
    both = written(form, ("get", GET), ("put", PUT))
    assert accepts(required, both)
    assert accepts(required, written(form, ("put", PUT)))
    assert not accepts(required, written(form, ("get", PUT)))
    assert not accepts(required, "Hello")
    assert not accepts(required, "")
    single = GrammarConstraint(forced_calls(form, TOOLS))
    assert accepts(single, written(form, ("get", GET)))
    assert not accepts(single, both)
    named = GrammarConstraint(forced_calls(form, TOOLS, only="get"))
    assert accepts(named, written(form, ("get", GET)))
    assert not accepts(named, written(form, ("put", PUT)))
    parser = ToolCallParser(form, {"get", "put"}, ids=call_ids(b""))
    parser.feed(both)
    assert parser.flush()[0] == ""
    assert parser.calls == 2


@FORMS
def test_strict_calls_stand_in_free_text(form: CallFormat) -> None:
    grammar = GrammarConstraint(strict_calls(form, TOOLS, several=True))
    good = written(form, ("get", GET), ("put", PUT))
    bad = written(form, ("get", PUT))
    assert accepts(grammar, "")
    assert accepts(grammar, "Hello [1] <b> é\n")
    assert accepts(grammar, good)
    assert not accepts(grammar, bad)
    opening = form.opening if form.bare else ""
    assert accepts(grammar, f"I look.\n{opening}{good}")
    assert not accepts(grammar, f"I look.\n{opening}{bad}")
    single = GrammarConstraint(strict_calls(form, TOOLS))
    assert accepts(single, written(form, ("get", GET)))
    assert not accepts(single, bad)


@pytest.mark.parametrize("text", ["{", "[]", '{"not": {}}', '{"type": "array"}', '{"type": ["string", "null"]}'])
def test_schemas_that_cannot_be_kept_are_refused_by_name(text: str) -> None:
    tools = (TOOLS[1], Tool("get", parameters=text))
    with pytest.raises(MantlerError) as caught:
        forced_calls(HERMES, tools)
    assert caught.value.param == "tools[1].function.parameters"
    # Nobody asked to keep it here.
    assert accepts(GrammarConstraint(strict_calls(HERMES, tools)), "Hello")


def test_arguments_are_objects_whatever_else_a_schema_allows() -> None:
    tool = Tool("get", parameters='{"type": ["object", "null"], "properties": {"x": {"type": "integer"}}}')
    grammar = GrammarConstraint(forced_calls(HERMES, (tool,)))
    assert accepts(grammar, written(HERMES, ("get", PUT)))
    assert not accepts(grammar, written(HERMES, ("get", "null")))


def prompt(tools: tuple[Tool, ...], choice: ToolChoice = ToolChoiceMode.AUTO) -> ChatPrompt:
    return ChatPrompt((ChatMessage(Role.USER, "?"),), tools=tools, tool_choice=choice)


def test_an_answer_is_free_unless_something_must_be_kept() -> None:
    lenient = (TOOLS[1],)
    for asked in (prompt(()), prompt(lenient), prompt(TOOLS, ToolChoiceMode.NONE)):
        assert outline(asked, None, HERMES, Reasoning.POSSIBLE) is None


def test_an_answer_may_be_calls_instead() -> None:
    either = outline(prompt(TOOLS), ANSWER, HERMES, Reasoning.NONE)
    assert either is not None
    assert either.param == JSON_SCHEMA_PARAM
    assert accepts(either, "[1, 2]")
    assert accepts(either, written(HERMES, ("get", GET), ("put", PUT)))
    assert not accepts(either, written(HERMES, ("get", PUT)))
    assert not accepts(either, "Hello")


@pytest.mark.parametrize("choice", [ToolChoiceMode.REQUIRED, NamedTool("get")])
def test_where_calls_are_forced_there_is_no_answer(choice: ToolChoice) -> None:
    forced = outline(prompt(TOOLS, choice), ANSWER, HERMES, Reasoning.NONE)
    assert forced is not None
    assert forced.param == "tools"
    assert not accepts(forced, "[1, 2]")
    assert accepts(forced, written(HERMES, ("get", GET)))


@pytest.mark.parametrize("choice", [ToolChoiceMode.AUTO, ToolChoiceMode.REQUIRED])
def test_reasoning_comes_first_and_is_free(choice: ToolChoice) -> None:
    call = written(HERMES, ("get", GET))
    opened = outline(prompt(TOOLS, choice), None, HERMES, Reasoning.OPENED)
    possible = outline(prompt(TOOLS, choice), None, HERMES, Reasoning.POSSIBLE)
    assert opened is not None
    assert possible is not None
    assert accepts(opened, f"Well. {{é\n</think>\n\n{call}")
    assert not accepts(opened, call)
    assert accepts(possible, f"<think>\nWell.\n</think>\n\n{call}")
    assert accepts(possible, call)
    answer = outline(prompt(()), ANSWER, HERMES, Reasoning.OPENED)
    assert answer is not None
    assert accepts(answer, "Well.</think>[1]")
    assert not accepts(answer, "[1]")
