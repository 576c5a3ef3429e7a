"""A conversation as a protobuf message and back."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import json_format, struct_pb2

from mantler import messages as m
from mantler.errors import invalid, unsupported
from mantler.v1 import chat_pb2
from mantler.wire.tools import choice_from_proto, choice_to_proto, tool_from_proto, tool_to_proto

_ROLES = {
    m.Role.SYSTEM: chat_pb2.ROLE_SYSTEM,
    m.Role.DEVELOPER: chat_pb2.ROLE_DEVELOPER,
    m.Role.USER: chat_pb2.ROLE_USER,
    m.Role.ASSISTANT: chat_pb2.ROLE_ASSISTANT,
    m.Role.TOOL: chat_pb2.ROLE_TOOL,
}
_ROLES_BACK = {number: role for role, number in _ROLES.items()}


def chat_to_proto(prompt: m.ChatPrompt) -> chat_pb2.ChatPrompt:
    """A conversation for the wire."""
    chat = chat_pb2.ChatPrompt(
        tools=[tool_to_proto(tool) for tool in prompt.tools],
        tool_choice=choice_to_proto(prompt.tool_choice),
        parallel_tool_calls=prompt.parallel_tool_calls,
    )
    if prompt.template_variables:
        json_format.ParseDict(dict(prompt.template_variables), chat.template_variables)
    for turn in prompt.messages:
        added = chat.messages.add(
            role=_ROLES[turn.role], name=turn.name, tool_call_id=turn.tool_call_id, reasoning=turn.reasoning
        )
        for call in turn.tool_calls:
            added.tool_calls.add(id=call.id, name=call.name, arguments=call.arguments)
        if turn.content is not None:
            added.content.add(text=turn.content)
    return chat


def chat_from_proto(chat: chat_pb2.ChatPrompt) -> m.ChatPrompt:
    """A conversation off the wire. Raises ``MantlerError`` naming the field that is bad or not supported."""
    return m.ChatPrompt(
        messages=tuple(_turn_from_proto(i, turn) for i, turn in enumerate(chat.messages)),
        tools=tuple(tool_from_proto(tool) for tool in chat.tools),
        tool_choice=choice_from_proto(chat.tool_choice),
        parallel_tool_calls=chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else True,
        template_variables=_variables_from_proto(chat),
    )


def _variables_from_proto(chat: chat_pb2.ChatPrompt) -> dict[str, object]:
    _check_values(chat.template_variables)
    try:
        variables: dict[str, object] = json_format.MessageToDict(chat.template_variables)
    except (json_format.Error, ValueError) as error:
        raise invalid("template_variables", "must hold JSON values; numbers must be finite.") from error
    return variables


def _check_values(variables: struct_pb2.Struct) -> None:
    # Before they are converted, which holds up everybody else.
    count = 0
    levels: list[Iterable[struct_pb2.Value]] = [variables.fields.values()]
    for level in levels:
        for value in level:
            count += 1
            if count > m.MAX_TEMPLATE_VALUES:
                raise invalid("template_variables", f"must hold at most {m.MAX_TEMPLATE_VALUES} values in all.")
            if value.HasField("struct_value"):
                levels.append(value.struct_value.fields.values())
            elif value.HasField("list_value"):
                levels.append(value.list_value.values)


def _turn_from_proto(position: int, turn: chat_pb2.ChatMessage) -> m.ChatMessage:
    where = f"messages[{position}]"
    role = _ROLES_BACK.get(turn.role)
    if role is None:
        raise invalid(f"{where}.role", "must be system, developer, user, assistant or tool.")
    parts: list[str] = []
    for part in turn.content:
        kind = part.WhichOneof("part")
        if kind != "text":
            raise unsupported(f"{where}.content", f"of kind {kind or 'unset'} is not supported by a text model")
        parts.append(part.text)
    return m.ChatMessage(
        role=role,
        content="".join(parts) if turn.content else None,
        name=turn.name if turn.HasField("name") else None,
        tool_calls=tuple(m.ToolCall(call.id, call.name, call.arguments) for call in turn.tool_calls),
        tool_call_id=turn.tool_call_id if turn.HasField("tool_call_id") else None,
        reasoning=turn.reasoning if turn.HasField("reasoning") else None,
    )
