"""Grammars (llguidance's Lark) of outputs with tool calls whose arguments follow their schemas."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mantler.errors import invalid
from mantler.messages import Tool
from runtime_server.chat.formats import CallFormat
from runtime_server.constraints.json_schema import LAYOUT, Json, read_schema


def forced_calls(form: CallFormat, tools: Sequence[Tool], *, only: str | None = None, several: bool = False) -> str:
    """Calls and nothing else, in the family's format. Every call's arguments follow the schema of its tool.

    Args:
        only: name of the one function that is called, once.
        several: whether there may be more than one call.

    Raises:
        MantlerError: INVALID_PARAMETER naming a schema that cannot be kept.
    """
    rules = _rules(form, tools, only)
    opening = "" if form.bare else _literal(form.opening + _break_after(form) + form.before)
    return "\n".join([f"start: {opening} {_calls(form, several=several)}", *rules])


def strict_calls(form: CallFormat, tools: Sequence[Tool], *, several: bool = False) -> str:
    """Free text with any number of calls, or with one at most where not ``several``.

    Arguments follow the schema of a tool that is strict; those of others are any object.

    Raises:
        MantlerError: INVALID_PARAMETER naming a schema that cannot be kept.
    """
    rules = _rules(form, tools, None, strict_only=True)
    calls = _calls(form, several=several)
    begun = f"text {'break?' if _break_after(form) else ''} {_literal(form.before)} {calls}"
    bare = f"{calls} | " if form.bare else ""
    # Where calls need no opening, an output that begins as they do is one.
    anything = r"/((?s:[^{].*))?/" if form.bare else "/(?s:.*)/"
    return "\n".join(
        [
            f"start: {bare}({begun}){'*' if several else '?'} rest",
            # The shortest text up to the tag counts, so that nothing behind a tag escapes.
            f"text[suffix={json.dumps(form.opening)}]: {anything}",
            f"rest: {anything}",
            'break: "\\n"',
            *rules,
        ]
    )


def _rules(form: CallFormat, tools: Sequence[Tool], only: str | None, *, strict_only: bool = False) -> list[str]:
    """``call``: one of the functions with its arguments, without what stands around calls."""
    called = [(i, tool) for i, tool in enumerate(tools) if only in (None, tool.name)]
    rules = ["call: " + " | ".join(f"call_{i}" for i, _ in called)]
    for i, tool in called:
        head = _literal(f'{{"name": {json.dumps(tool.name)}, "{form.arguments_key}": ')
        schema = _schema(i, tool) if tool.strict or not strict_only else {}
        # The arguments of a function are an object, also where its schema leaves it open.
        arguments = {**schema, "type": "object", "x-guidance": LAYOUT}
        rules += [f'call_{i}: {head} arguments_{i} "}}"', f"arguments_{i}: %json {json.dumps(arguments)}"]
    return rules


def _calls(form: CallFormat, *, several: bool) -> str:
    """Calls behind their opening."""
    closing = _literal(_break_after(form) + form.closing)
    if form.between:
        more = f"({_literal(form.between + ' ')} call)*" if several else ""
        return f"call {more} {closing}"
    again = _literal("\n" + form.opening + _break_after(form) + form.before)
    more = f"({again} call {closing})*" if several else ""
    return f"call {closing} {more}"


def _break_after(form: CallFormat) -> str:
    """Tags stand on lines of their own."""
    return "\n" if form.closing.startswith("<") else ""


def _schema(position: int, tool: Tool) -> Json:
    if tool.parameters is None:
        return {}
    param = f"tools[{position}].function.parameters"
    schema = read_schema(tool.parameters, param)
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise invalid(param, "#/type must be object: arguments are always one.")
    return schema


def _literal(text: str) -> str:
    # JSON's escapes are among those of Lark's strings.
    return json.dumps(text) if text else ""
