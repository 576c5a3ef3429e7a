"""A conversation: who speaks, what was said, and the tools that are offered. Constructing one checks its ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from mantler.errors import invalid
from mantler.messages.tools import NamedTool, Tool, ToolCall, ToolChoice, ToolChoiceMode

MAX_MESSAGES = 8192
"""Turns of a conversation. Each takes some tokens, and each costs every layer some work before they are counted."""
MAX_TOOLS = 128
"""As many as OpenAI takes."""
MAX_TEMPLATE_VARIABLES = 64
MAX_TEMPLATE_VARIABLE_DEPTH = 16
MAX_TEMPLATE_VALUES = 10_000
"""In all variables together, objects and arrays included. Each costs both sides of the wire some microseconds."""
MAX_TEMPLATE_NUMBER = 2**53 - 1
"""Numbers travel as doubles, which hold integers up to here exactly (RFC 8259, section 6)."""


class Role(Enum):
    """Who speaks."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation. ``content`` is ``None`` where the turn has none, as beside tool calls."""

    role: Role
    content: str | None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    """That the assistant made in this turn."""
    tool_call_id: str | None = None
    """In a tool's message: the call that it answers."""
    reasoning: str | None = None
    """The assistant's in this turn."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation to be rendered with the model's chat template."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    """That are offered."""
    tool_choice: ToolChoice = ToolChoiceMode.AUTO
    parallel_tool_calls: bool = True
    """Whether one answer may make several calls."""
    template_variables: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Further ones for the chat template, JSON values by name."""

    def __post_init__(self) -> None:
        if not self.messages:
            raise invalid("messages", "must hold at least one message.")
        if len(self.messages) > MAX_MESSAGES:
            raise invalid("messages", f"must hold at most {MAX_MESSAGES} messages, got {len(self.messages)}.")
        self._check_tools()
        self._check_template_variables()

    def _check_template_variables(self) -> None:
        if len(self.template_variables) > MAX_TEMPLATE_VARIABLES:
            raise invalid(
                "template_variables",
                f"must hold at most {MAX_TEMPLATE_VARIABLES} names, got {len(self.template_variables)}.",
            )
        count = 0
        for depth, level in enumerate(_levels(self.template_variables), 1):
            count += len(level)
            if depth > MAX_TEMPLATE_VARIABLE_DEPTH:
                raise invalid("template_variables", f"must be nested at most {MAX_TEMPLATE_VARIABLE_DEPTH} deep.")
            if count > MAX_TEMPLATE_VALUES:
                raise invalid("template_variables", f"must hold at most {MAX_TEMPLATE_VALUES} values in all.")
            if not all(map(_travels, level)):
                raise invalid(
                    "template_variables",
                    f"must hold numbers from {-MAX_TEMPLATE_NUMBER} to {MAX_TEMPLATE_NUMBER} only.",
                )

    def _check_tools(self) -> None:
        if len(self.tools) > MAX_TOOLS:
            raise invalid("tools", f"must hold at most {MAX_TOOLS} tools, got {len(self.tools)}.")
        names = {tool.name for tool in self.tools}
        if len(names) < len(self.tools):
            raise invalid("tools", "must name each function once.")
        if isinstance(self.tool_choice, NamedTool):
            if self.tool_choice.name not in names:
                raise invalid("tool_choice", "must name one of the tools.")
        elif self.tool_choice is ToolChoiceMode.REQUIRED and not names:
            raise invalid("tool_choice", "must be auto or none where no tools are offered.")


def _levels(variables: Mapping[str, object]) -> Iterator[list[object]]:
    """The values of ``variables``, then those within these, and so on."""
    level: list[object] = [variables]
    while outer := [each for each in level if isinstance(each, (Mapping, list))]:
        level = [inner for each in outer for inner in (each.values() if isinstance(each, Mapping) else each)]
        yield level


def _travels(value: object) -> bool:
    """Whether ``value`` is no number, or one that is the same at the other end of the wire."""
    return not isinstance(value, int | float) or abs(value) <= MAX_TEMPLATE_NUMBER
