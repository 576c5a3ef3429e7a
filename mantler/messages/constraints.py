"""What an output must match. Constructing one checks its size; whether it can be honoured, the runtime says."""

from __future__ import annotations

from dataclasses import dataclass

from mantler.errors import invalid

MAX_CONSTRAINT_CHARS = 131_072
"""Of a JSON Schema, a grammar or all choices together."""
MAX_REGEX_CHARS = 16_384
MAX_CHOICES_LISTED = 1000

JSON_SCHEMA_PARAM = "response_format.json_schema.schema"


@dataclass(frozen=True, slots=True)
class JsonSchemaConstraint:
    """A JSON document that is valid against ``schema``, which is the text of a JSON Schema (draft 2020-12)."""

    schema: str

    def __post_init__(self) -> None:
        _check_chars(JSON_SCHEMA_PARAM, len(self.schema), MAX_CONSTRAINT_CHARS)


@dataclass(frozen=True, slots=True)
class JsonObjectConstraint:
    """Any JSON object."""


@dataclass(frozen=True, slots=True)
class RegexConstraint:
    """Text that ``pattern`` matches from its first character to its last."""

    pattern: str

    def __post_init__(self) -> None:
        _check_chars("regex", len(self.pattern), MAX_REGEX_CHARS)


@dataclass(frozen=True, slots=True)
class GrammarConstraint:
    """Text that ``grammar``, in Lark's notation, derives from its rule ``start``."""

    grammar: str

    def __post_init__(self) -> None:
        _check_chars("grammar", len(self.grammar), MAX_CONSTRAINT_CHARS)


@dataclass(frozen=True, slots=True)
class ChoiceConstraint:
    """Exactly one of ``values``."""

    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.values) <= MAX_CHOICES_LISTED:
            raise invalid("choice", f"must hold 1 to {MAX_CHOICES_LISTED} values, got {len(self.values)}.")
        if not all(self.values):
            raise invalid("choice", "every value must have at least 1 character.")
        _check_chars("choice", sum(len(value) for value in self.values), MAX_CONSTRAINT_CHARS)


Constraint = JsonSchemaConstraint | JsonObjectConstraint | RegexConstraint | GrammarConstraint | ChoiceConstraint


def constraint_param(constraint: Constraint) -> str:
    """The request field that ``constraint`` came from, as errors name it."""
    match constraint:
        case JsonSchemaConstraint():
            return JSON_SCHEMA_PARAM
        case JsonObjectConstraint():
            return "response_format"
        case RegexConstraint():
            return "regex"
        case GrammarConstraint():
            return "grammar"
        case ChoiceConstraint():
            return "choice"


def _check_chars(param: str, count: int, limit: int) -> None:
    if not 1 <= count <= limit:
        raise invalid(param, f"must have 1 to {limit} characters, got {count}.")
