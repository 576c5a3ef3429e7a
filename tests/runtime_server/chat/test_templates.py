"""Tools and calls reach chat templates, those that know them and those that do not."""

from __future__ import annotations

import pytest

from mantler import wire
from mantler.errors import MantlerError
from mantler.messages import ChatMessage, ChatPrompt, Role, Tool, ToolCall
from mantler.v1 import generation_pb2
from runtime_server.models.template import ChatTemplate

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
KNOWING = PLAIN + "<tool_call>{{ tools | tojson }}{{ messages[-1].tool_calls | tojson }}{{ enable_thinking }}"
HISTORY = (
    ChatMessage(Role.USER, "q"),
    ChatMessage(Role.ASSISTANT, None, tool_calls=(ToolCall("a", "get", '{"x": 1}'), ToolCall("b", "put", "{}"))),
    ChatMessage(Role.TOOL, "1", tool_call_id="a"),
    ChatMessage(Role.TOOL, "2", tool_call_id="b"),
)


def test_a_template_that_knows_tools_gets_them() -> None:
    made = ChatTemplate(KNOWING, {}).render(HISTORY[:2], [Tool("get", "d", '{"a": 1}')], {"enable_thinking": False})
    assert '[{"type": "function", "function": {"name": "get", "description": "d", "parameters": {"a": 1}}}]' in made
    assert '{"id": "a", "type": "function", "function": {"name": "get", "arguments": {"x": 1}}}' in made
    assert made.startswith("[user]q[assistant]<tool_call>")
    assert made.endswith("False")


def test_variables_cannot_replace_the_conversation() -> None:
    assert ChatTemplate(PLAIN, {}).render(HISTORY[:1], variables={"messages": []}) == "[user]q"


def test_a_template_that_knows_no_tools_gets_text() -> None:
    made = ChatTemplate(PLAIN, {}).render(HISTORY, [Tool("get")])
    assert made.startswith("[system]You may call")
    assert '<tools>\n{"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}\n' in made
    assert made.endswith(
        '[user]q[assistant]<tool_call>\n{"name": "get", "arguments": {"x": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "put", "arguments": {}}\n</tool_call>'
        "[user]<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    )


def test_a_system_message_keeps_its_text_beside_the_tools() -> None:
    made = ChatTemplate(PLAIN, {}).render((ChatMessage(Role.SYSTEM, "s"), *HISTORY), [Tool("get")])
    assert made.startswith("[system]s\n\nYou may call")


@pytest.mark.parametrize("arguments", ["{", "[]", "1"])
def test_calls_whose_arguments_are_no_object_are_refused(arguments: str) -> None:
    turn = ChatMessage(Role.ASSISTANT, None, tool_calls=(ToolCall("a", "get", arguments),))
    for source in (PLAIN, KNOWING):
        with pytest.raises(MantlerError) as caught:
            ChatTemplate(source, {}).render((turn,))
        assert caught.value.param == "messages[0].tool_calls"


def test_calls_and_reasoning_in_the_history_survive_the_wire() -> None:
    prompt = ChatPrompt((*HISTORY, ChatMessage(Role.ASSISTANT, "x", reasoning="hm")))
    message = generation_pb2.CountTokensRequest(chat=wire.chat_to_proto(prompt))
    assert wire.count_request_from_proto(message) == prompt
