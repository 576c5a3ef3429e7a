"""Functions that a model may call, and its calls, as plain values. Constructing one checks its ranges."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from mantler.errors import invalid

MAX_TOOL_NAME_CHARS = 64
MAX_TOOL_CHARS = 131_072
"""Of a tool's description, and of its schema."""

_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_TOOL_NAME_CHARS}}}")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: str | None = None
    """Text of the JSON Schema that the arguments follow. ``None`` means any object."""
    strict: bool = False
    """Whether the arguments must follow the schema."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise invalid("tools", f"a name must be 1 to {MAX_TOOL_NAME_CHARS} of a-z, A-Z, 0-9, _ and -.")
        if max(len(self.description or ""), len(self.parameters or "")) > MAX_TOOL_CHARS:
            raise invalid("tools", f"a description or schema must have at most {MAX_TOOL_CHARS} characters.")


class ToolChoiceMode(Enum):
    """A choice that names no function. The values are OpenAI's ``tool_choice``."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class NamedTool:
    """The one function to call."""

    name: str


ToolChoice = ToolChoiceMode | NamedTool


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A finished call. ``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of a call. ``id`` and ``name`` come with the call's first part only."""

    index: int
    """Of the call within the message, from 0."""
    arguments: str = ""
    """The next piece of the arguments' JSON text."""
    id: str | None = None
    name: str | None = None


def join_calls(parts: Iterable[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    """``parts`` with neighbouring pieces of one call's arguments joined. A call's first part stays by itself."""
    joined: list[ToolCallDelta] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is not None and last.index == part.index and last.id is None and part.id is None:
            joined[-1] = replace(last, arguments=last.arguments + part.arguments)
        else:
            joined.append(part)
    return tuple(joined)
