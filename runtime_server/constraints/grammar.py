"""Spells a constraint as the text that the compiler takes, and the compiler's complaints as errors for clients."""

from __future__ import annotations

import json
import re
from typing import Any

from llguidance import LLMatcher

from mantler.errors import MantlerError, invalid
from mantler.messages import (
    ChoiceConstraint,
    Constraint,
    GrammarConstraint,
    JsonObjectConstraint,
    JsonSchemaConstraint,
    RegexConstraint,
    constraint_param,
)
from runtime_server.chat.dialect import Reasoning
from runtime_server.chat.reasoning import CLOSING, OPENING
from runtime_server.constraints.json_schema import LAYOUT, read_schema
from runtime_server.constraints.outline import Outline

MAX_COMPLAINT_CHARS = 200
_PLACE = re.compile(r"^at \d+\(\d+\): failed to compile JSON schema: ")
_ARGUMENTS = re.compile(r"^ +\d+ \| arguments_(\d+): .*\n +\^", re.MULTILINE)
"""The line at fault of a grammar of calls, as the compiler quotes it: the rule of one tool's arguments."""

Grammar = dict[str, Any]
"""One of the compiler's, as JSON."""

_THINKING = {
    Reasoning.NONE: "",
    Reasoning.POSSIBLE: f'("{OPENING}" reasoning space)?',
    Reasoning.OPENED: "reasoning space",
}
_REASONING = f'reasoning[suffix="{CLOSING}"]: /(?s:.*)/\nspace: /\\n{{0,2}}/'


def grammar_text(constraint: Constraint | Outline) -> str:
    """The compiler's text. Raises ``MantlerError`` where the constraint is refused before it is compiled."""
    if isinstance(constraint, Outline):
        return json.dumps({"grammars": _outlined(constraint)})
    return json.dumps({"grammars": [_grammar(constraint)]})


def error_param(constraint: Constraint | Outline) -> str:
    """The request's field that errors name."""
    return constraint.param if isinstance(constraint, Outline) else constraint_param(constraint)


def complaint(constraint: Constraint | Outline, text: str) -> MantlerError:
    """The 400 for a constraint that the compiler refuses with ``text``.

    What it says is about the client's own input and the only thing that helps, so it is handed on, but only its
    sentence: what it quotes of its state goes.
    """
    param = error_param(constraint)
    if text.startswith("panic"):
        return invalid(param, "cannot be compiled.")
    if isinstance(constraint, Outline) and (of_tool := _ARGUMENTS.search(text)):
        param = f"tools[{of_tool[1]}].function.parameters"
        text = _PLACE.sub("", text)
    found = re.search(r"^error: (.*)", text, re.MULTILINE)
    sentence = found.group(1) if found else text.partition("\n")[0]
    if "coerce_one_of" in sentence:
        return invalid(param, "oneOf is supported only where its branches cannot match at once; use anyOf instead.")
    return invalid(param, f"cannot be compiled: {sentence[:MAX_COMPLAINT_CHARS]}.")


def _outlined(outline: Outline) -> list[Grammar]:
    """The grammars of an outline. The first one names the others."""
    parts: dict[str, Grammar] = {}
    if outline.answer is not None:
        parts["answer"] = _grammar(outline.answer)
    if outline.calls:
        parts["calls"] = {"lark_grammar": outline.calls}
    if outline.reasoning is Reasoning.NONE and len(parts) == 1:
        return list(parts.values())
    either = " | ".join(f"@{name}" for name in parts)
    whole = f"start: {_THINKING[outline.reasoning]} ({either})\n{_REASONING}"
    return [{"lark_grammar": whole}, *({**part, "name": name} for name, part in parts.items())]


def _grammar(constraint: Constraint) -> Grammar:
    match constraint:
        case JsonSchemaConstraint():
            return _json_grammar(json.dumps(read_schema(constraint.schema)), constraint)
        case JsonObjectConstraint():
            return _json_grammar('{"type":"object"}', constraint)
        case RegexConstraint():
            return _first(LLMatcher.grammar_from_regex(constraint.pattern))
        case GrammarConstraint():
            return {"lark_grammar": constraint.grammar}
        case ChoiceConstraint():
            # JSON's escapes are among those of Lark's strings.
            values = " | ".join(json.dumps(value, ensure_ascii=False) for value in dict.fromkeys(constraint.values))
            return {"lark_grammar": f"start: {values}"}


def _json_grammar(schema: str, constraint: Constraint) -> Grammar:
    try:
        return _first(LLMatcher.grammar_from_json_schema(schema, overrides=LAYOUT))
    except ValueError as error:
        raise complaint(constraint, str(error)) from error


def _first(text: str) -> Grammar:
    grammars: list[Grammar] = json.loads(text)["grammars"]
    return grammars[0]
