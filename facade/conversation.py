"""A conversation: ``messages``, ``tools`` and what else the chat template gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from facade.json_body import JsonBody, validated
from facade.options import MESSAGE_NO_OPS, refuse_unsupported
from facade.spelling import spelled_as
from facade.tool_options import read_tool_choice, read_tools
from mantler.errors import invalid, unsupported
from mantler.messages import MAX_TOOLS, ChatMessage, ChatPrompt, Role, ToolCall

_REFUSED_PARTS = frozenset({"image_url", "input_audio", "video_url", "audio_url", "file", "refusal"})


class ConversationBody(JsonBody):
    """What requests with a conversation have in common, but for its messages."""

    # Each is read by hand, so that an error names the place.
    tools: list[Any] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class _MessageBody(JsonBody):
    role: str
    content: Any = None
    name: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    # The same twice: most servers say the first, vLLM says the second by now.
    reasoning_content: str | None = None
    reasoning: str | None = None


class _FunctionBody(JsonBody):
    name: str
    arguments: str


class _ToolCallBody(JsonBody):
    id: str
    type: str
    function: _FunctionBody


def chat_prompt(messages: Sequence[Any], body: ConversationBody) -> ChatPrompt:
    """What the template renders. Raises ``MantlerError`` naming the field at fault."""
    with spelled_as("template_variables", "chat_template_kwargs"):
        return ChatPrompt(
            tuple(_message(f"messages[{i}]", turn) for i, turn in enumerate(messages)),
            tools=read_tools(body.tools or ()),
            tool_choice=read_tool_choice(body.tool_choice),
            parallel_tool_calls=True if body.parallel_tool_calls is None else body.parallel_tool_calls,
            template_variables=body.chat_template_kwargs or {},
        )


def _message(where: str, given: Any) -> ChatMessage:
    """One turn; ``where`` is its place in the body."""
    body = validated(given, _MessageBody, where)
    try:
        role = Role(body.role)
    except ValueError:
        raise invalid(f"{where}.role", "must be system, developer, user, assistant or tool.") from None
    refuse_unsupported(given, MESSAGE_NO_OPS, f"{where}.")
    _check_fields_of_role(where, body, role)
    content = _content(f"{where}.content", body.content)
    if content is None and role is not Role.ASSISTANT:
        raise invalid(f"{where}.content", f"is required with the role {role.value}.")
    return ChatMessage(
        role=role,
        content=content,
        name=body.name,
        tool_calls=tuple(_tool_call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(body.tool_calls or ())),
        tool_call_id=body.tool_call_id,
        reasoning=body.reasoning if body.reasoning_content is None else body.reasoning_content,
    )


def _check_fields_of_role(where: str, body: _MessageBody, role: Role) -> None:
    if role is Role.TOOL and body.tool_call_id is None:
        raise invalid(f"{where}.tool_call_id", "is required with the role tool.")
    if role is not Role.TOOL and body.tool_call_id is not None:
        raise invalid(f"{where}.tool_call_id", "is only allowed with the role tool.")
    if role is not Role.ASSISTANT:
        for name in ("tool_calls", "reasoning_content", "reasoning"):
            if getattr(body, name):
                raise invalid(f"{where}.{name}", "is only allowed with the role assistant.")


def _tool_call(where: str, given: Any) -> ToolCall:
    if isinstance(given, dict) and given.get("type") == "custom":
        raise unsupported(where, "of type custom is not supported")
    body = validated(given, _ToolCallBody, where)
    if body.type != "function":
        raise invalid(f"{where}.type", "must be function, the only kind that is supported.")
    return ToolCall(body.id, body.function.name, body.function.arguments)


def _content(where: str, content: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(where, "must be a string or an array of content parts.")
    if not content:
        raise invalid(where, "must hold at least one content part.")
    return "".join(_part(f"{where}[{i}]", part) for i, part in enumerate(content))


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise invalid(where, "must be an object with a type.")
    if kind in _REFUSED_PARTS:
        raise unsupported(where, f"of type {kind} is not supported")
    if kind != "text":
        raise invalid(f"{where}.type", "must be text, the only kind that is supported.")
    text = part.get("text")
    if not isinstance(text, str):
        raise invalid(f"{where}.text", "must be a string.")
    return text
