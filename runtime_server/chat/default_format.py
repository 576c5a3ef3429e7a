"""Tools, calls and results in OpenAI's shape, and as text for chat templates that know none of them.

The text is Hermes' format: functions in the system message, calls and results as JSON between tags.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mantler.errors import invalid
from mantler.messages import ChatMessage, Role, Tool, ToolCall

_INSTRUCTIONS = """You may call these functions. Their signatures are JSON between <tools> tags:
<tools>
{tools}
</tools>
To call one, write its name and its arguments as JSON between <tool_call> tags, once for each call:
<tool_call>
{{"name": "function", "arguments": {{"parameter": "value"}}}}
</tool_call>"""


def openai_tool(position: int, tool: Tool) -> dict[str, Any]:
    """A tool as OpenAI spells it. Raises ``MantlerError`` where its schema is no JSON object."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    where = f"tools[{position}].function.parameters"
    function["parameters"] = {"type": "object"} if tool.parameters is None else _object(where, tool.parameters)
    return {"type": "function", "function": function}


def openai_call(position: int, call: ToolCall) -> dict[str, Any]:
    """A call as OpenAI spells it, but for its arguments, which templates want as an object.

    Raises ``MantlerError`` where the arguments are no JSON object; ``position`` is that of the message.
    """
    where = f"messages[{position}].tool_calls"
    arguments = _object(where, call.arguments or "{}")
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def with_tools(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> Sequence[ChatMessage]:
    """The conversation with a system message that offers ``tools``."""
    if not tools:
        return messages
    written = "\n".join(json.dumps(openai_tool(i, tool), ensure_ascii=False) for i, tool in enumerate(tools))
    text = _INSTRUCTIONS.format(tools=written)
    first = messages[0]
    if first.role in (Role.SYSTEM, Role.DEVELOPER):
        return [replace(first, content=f"{first.content or ''}\n\n{text}".lstrip()), *messages[1:]]
    return [ChatMessage(Role.SYSTEM, text), *messages]


def without_calls(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The conversation with calls and results as text. Results that follow one another share a user's turn."""
    turns: list[ChatMessage] = []
    previous: Role | None = None
    for position, message in enumerate(messages):
        if message.role is Role.TOOL:
            text = f"<tool_response>\n{message.content or ''}\n</tool_response>"
            if previous is Role.TOOL:
                turns[-1] = replace(turns[-1], content=f"{turns[-1].content}\n{text}")
            else:
                turns.append(ChatMessage(Role.USER, text))
        elif message.tool_calls:
            calls = [_call_text(position, call) for call in message.tool_calls]
            text = "\n".join([message.content, *calls] if message.content else calls)
            turns.append(replace(message, content=text, tool_calls=()))
        else:
            turns.append(message)
        previous = message.role
    return turns


def _call_text(position: int, call: ToolCall) -> str:
    body = json.dumps(openai_call(position, call)["function"], ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def _object(where: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(where, "must be JSON text.") from error
    if not isinstance(value, dict):
        raise invalid(where, "must be the text of a JSON object.")
    return value
