"""The grammar that an output follows when it must call a tool."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mantler.errors import invalid
from mantler.messages import GrammarConstraint, NamedTool, Tool, ToolChoice
from runtime_server.chat.default_format import openai_tool
from runtime_server.chat.formats import CallFormat

_ANY_OBJECT: dict[str, object] = {"type": "object"}
"""The arguments of a function are an object, also where its schema leaves it open."""


def forced_calls(
    form: CallFormat, tools: Sequence[Tool], choice: ToolChoice, *, parallel: bool = True
) -> GrammarConstraint:
    """A Lark grammar of llguidance for one call or, where ``parallel``, several, in the family's format.

    Each call's arguments follow the schema of its tool. A named function is called once.

    Raises:
        MantlerError: INVALID_PARAMETER where ``choice`` names no tool, or a schema is no JSON object.
    """
    called = [tool for tool in tools if not isinstance(choice, NamedTool) or tool.name == choice.name]
    if not called:
        raise invalid("tool_choice", "must name one of the tools.")
    several = parallel and not isinstance(choice, NamedTool)
    opening = "" if form.bare else form.opening + ("\n" if form.opening.startswith("<") else "")
    closing = ("\n" if form.closing.startswith("<") else "") + form.closing
    first, last = json.dumps(opening + form.before), json.dumps(closing)
    if form.between:
        more = f" ({json.dumps(form.between + ' ')} call)*" if several else ""
        start = f"{first if opening or form.before else ''} call{more} {last if closing else ''}"
    else:
        more = rf' ("\n" {first} call {last})*' if several else ""
        start = f"{first} call {last}{more}"
    lines = [f"start: {start.strip()}", "call: " + " | ".join(f"call_{i}" for i in range(len(called)))]
    for i, tool in enumerate(called):
        head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "{form.arguments_key}": ')
        lines.append(f'call_{i}: {head} arguments_{i} "}}"')
        lines.append(f"arguments_{i}: %json {json.dumps(_ANY_OBJECT | openai_tool(i, tool)['function']['parameters'])}")
    return GrammarConstraint("\n".join(lines) + "\n")
