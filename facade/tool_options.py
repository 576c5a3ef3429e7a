"""``tools`` and ``tool_choice`` of a chat completion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from facade.json_body import JsonBody, validated
from facade.spelling import spelled_as
from mantler.errors import invalid, unsupported
from mantler.messages import NamedTool, Tool, ToolChoice, ToolChoiceMode

_CHOICES = "must be none, auto, required or an object that names a function."


class FunctionBody(JsonBody):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _ToolBody(JsonBody):
    type: str
    function: Any = None


class _NameBody(JsonBody):
    name: str


def read_tools(given: Sequence[Any]) -> tuple[Tool, ...]:
    """The functions that may be called. Raises ``MantlerError`` naming the field at fault."""
    return tuple(_tool(f"tools[{i}]", each) for i, each in enumerate(given))


def read_tool_choice(given: Any) -> ToolChoice:
    """Whether a function must be called; auto where the client did not say. Raises ``MantlerError``."""
    if given is None:
        return ToolChoiceMode.AUTO
    if isinstance(given, str):
        try:
            return ToolChoiceMode(given)
        except ValueError:
            raise invalid("tool_choice", _CHOICES) from None
    kind = given.get("type") if isinstance(given, dict) else None
    if kind in ("allowed_tools", "custom"):
        raise unsupported("tool_choice", f"of type {kind} is not supported")
    if kind != "function":
        raise invalid("tool_choice", _CHOICES)
    return NamedTool(validated(given.get("function"), _NameBody, "tool_choice.function").name)


def _tool(where: str, given: Any) -> Tool:
    body = validated(given, _ToolBody, where)
    if body.type == "custom":
        raise unsupported(where, "of type custom is not supported")
    if body.type != "function":
        raise invalid(f"{where}.type", "must be function, the only kind that is supported.")
    if body.function is None:
        raise invalid(f"{where}.function", "is required.")
    function = validated(body.function, FunctionBody, f"{where}.function")
    schema = None if function.parameters is None else json.dumps(function.parameters, ensure_ascii=False)
    with spelled_as("tools", f"{where}.function"):
        return Tool(function.name, function.description, schema, strict=bool(function.strict))
