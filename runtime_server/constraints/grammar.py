"""Spells a constraint as the text that the compiler takes, and the compiler's complaints as errors for clients."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

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
from runtime_server.constraints.json_schema import read_schema

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_LAYOUT: JsonCompileOptions = {
    # A space may follow a comma or a colon and stands nowhere else: a small model that may write white space writes
    # nothing but white space, sooner or later.
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "lenient": False,
    "coerce_one_of": False,
}
MAX_COMPLAINT_CHARS = 200


def grammar_text(constraint: Constraint) -> str:
    """The compiler's text. Raises ``MantlerError`` where the constraint is refused before it is compiled."""
    match constraint:
        case JsonSchemaConstraint():
            return _json_grammar(json.dumps(read_schema(constraint.schema)), constraint)
        case JsonObjectConstraint():
            return _json_grammar('{"type":"object"}', constraint)
        case RegexConstraint():
            return LLMatcher.grammar_from_regex(constraint.pattern)
        case GrammarConstraint():
            return LLMatcher.grammar_from_lark(constraint.grammar)
        case ChoiceConstraint():
            # JSON's escapes are among those of Lark's strings.
            values = " | ".join(json.dumps(value, ensure_ascii=False) for value in dict.fromkeys(constraint.values))
            return LLMatcher.grammar_from_lark(f"start: {values}")


def complaint(constraint: Constraint, text: str) -> MantlerError:
    """The 400 for a constraint that the compiler refuses with ``text``.

    What it says is about the client's own input and the only thing that helps, so it is handed on, but only its
    sentence: what it quotes of its state goes.
    """
    param = constraint_param(constraint)
    if text.startswith("panic"):
        return invalid(param, "cannot be compiled.")
    if "coerce_one_of" in text:
        return invalid(param, "oneOf is supported only where its branches cannot match at once; use anyOf instead.")
    found = re.search(r"^error: (.*)", text, re.MULTILINE)
    sentence = found.group(1) if found else text.partition("\n")[0]
    return invalid(param, f"cannot be compiled: {sentence[:MAX_COMPLAINT_CHARS]}.")


def _json_grammar(schema: str, constraint: Constraint) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides=_LAYOUT)
    except ValueError as error:
        raise complaint(constraint, str(error)) from error
