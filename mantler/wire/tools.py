"""Tools, the choice among them, and calls, as protobuf messages and back."""

from __future__ import annotations

from mantler.errors import invalid
from mantler.messages import NamedTool, Tool, ToolCallDelta, ToolChoice, ToolChoiceMode
from mantler.v1 import chat_pb2, generation_pb2

_MODES = {
    ToolChoiceMode.AUTO: chat_pb2.TOOL_CHOICE_MODE_AUTO,
    ToolChoiceMode.NONE: chat_pb2.TOOL_CHOICE_MODE_NONE,
    ToolChoiceMode.REQUIRED: chat_pb2.TOOL_CHOICE_MODE_REQUIRED,
}
_MODES_BACK = {number: mode for mode, number in _MODES.items()}


def tool_to_proto(tool: Tool) -> chat_pb2.Tool:
    """A tool for the wire."""
    return chat_pb2.Tool(
        name=tool.name,
        description=tool.description,
        parameters_json_schema=tool.parameters,
        strict=tool.strict,
    )


def tool_from_proto(message: chat_pb2.Tool) -> Tool:
    """A tool off the wire. Raises ``MantlerError`` for a bad name or one that is too long."""
    return Tool(
        name=message.name,
        description=message.description if message.HasField("description") else None,
        parameters=message.parameters_json_schema if message.HasField("parameters_json_schema") else None,
        strict=message.strict,
    )


def choice_to_proto(choice: ToolChoice) -> chat_pb2.ToolChoice:
    """A choice among tools for the wire."""
    if isinstance(choice, NamedTool):
        return chat_pb2.ToolChoice(function_name=choice.name)
    return chat_pb2.ToolChoice(mode=_MODES[choice])


def choice_from_proto(message: chat_pb2.ToolChoice) -> ToolChoice:
    """A choice among tools off the wire; one that is not set is AUTO. Raises ``MantlerError`` for an unknown mode."""
    match message.WhichOneof("choice"):
        case "function_name":
            return NamedTool(message.function_name)
        case "mode":
            mode = _MODES_BACK.get(message.mode)
            if mode is None:
                raise invalid("tool_choice", "must be auto, none, required or the name of a function.")
            return mode
        case None:
            return ToolChoiceMode.AUTO


def call_delta_to_proto(delta: ToolCallDelta) -> generation_pb2.ToolCallDelta:
    """A part of a call for the wire."""
    return generation_pb2.ToolCallDelta(index=delta.index, id=delta.id, name=delta.name, arguments=delta.arguments)


def call_delta_from_proto(message: generation_pb2.ToolCallDelta) -> ToolCallDelta:
    """A part of a call off the wire."""
    return ToolCallDelta(
        index=message.index,
        arguments=message.arguments,
        id=message.id if message.HasField("id") else None,
        name=message.name if message.HasField("name") else None,
    )
