"""What the output must match, under each of the names that clients know.

``response_format`` is OpenAI's. The others are vLLM's: ``regex``, ``choice`` and ``grammar``, the same with ``guided_``
before them, ``guided_json``, and ``structured_outputs``, an object that holds one of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from facade.json_body import JsonBody, validated
from facade.options import STRUCTURED_OUTPUTS_NO_OPS, refuse_unsupported
from facade.spelling import spelled_as
from mantler.errors import invalid
from mantler.messages import (
    JSON_SCHEMA_PARAM,
    ChoiceConstraint,
    Constraint,
    GrammarConstraint,
    JsonObjectConstraint,
    JsonSchemaConstraint,
    RegexConstraint,
    constraint_param,
)

_SCHEMA_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class StructuredOutputsBody(JsonBody):
    """The fields of a request that say what its output must match. At most one may ask for something."""

    response_format: dict[str, Any] | None = None
    regex: str | None = None
    choice: list[Any] | None = None
    grammar: str | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[Any] | None = None
    guided_grammar: str | None = None
    structured_outputs: dict[str, Any] | None = None


class _JsonSchemaBody(JsonBody):
    name: str
    description: str | None = None
    # What is asked for either way: an output that the schema would not allow is of no use to anybody.
    strict: bool | None = None
    document: Any = Field(None, alias="schema")


@dataclass(frozen=True, slots=True)
class NamedConstraint:
    """A constraint, and the field that it came from."""

    constraint: Constraint
    param: str

    @property
    def spelling(self) -> dict[str, str]:
        """The name that errors of the runtime have for it, and the client's."""
        return {constraint_param(self.constraint): self.param}


def named_constraint(body: StructuredOutputsBody) -> NamedConstraint | None:
    """What the output must match. Raises ``MantlerError`` naming the field at fault, also where there are two."""
    asked = list(_asked(body))
    if len(asked) > 1:
        raise invalid(asked[1].param, f"cannot be combined with {asked[0].param}: an output matches one of them.")
    return asked[0] if asked else None


def _asked(body: StructuredOutputsBody) -> Iterator[NamedConstraint]:
    if body.response_format is not None:
        yield from _response_format(body.response_format)
    for param, kind in _FIELDS.items():
        value = getattr(body, param)
        if value is not None:
            yield _made(kind, param, value)
    options = body.structured_outputs or {}
    refuse_unsupported(options, STRUCTURED_OUTPUTS_NO_OPS, "structured_outputs.")
    for kind in ("json", "regex", "choice", "grammar", "json_object"):
        if options.get(kind) is not None:
            yield _made(kind, f"structured_outputs.{kind}", options[kind])


_FIELDS = {
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}


def _response_format(given: dict[str, Any]) -> Iterator[NamedConstraint]:
    match given.get("type"):
        case "text":
            return
        case "json_object":
            yield NamedConstraint(JsonObjectConstraint(), "response_format")
        case "json_schema":
            where = "response_format.json_schema"
            if not isinstance(given.get("json_schema"), dict):
                raise invalid(where, "must be an object with a name and a schema.")
            body = validated(given["json_schema"], _JsonSchemaBody, where)
            if not _SCHEMA_NAME.fullmatch(body.name):
                raise invalid(f"{where}.name", "must be 1 to 64 of a-z, A-Z, 0-9, _ and -.")
            if not isinstance(body.document, dict):
                raise invalid(f"{where}.schema", "must be an object, a JSON Schema.")
            yield _made("json", f"{where}.schema", body.document)
        case _:
            raise invalid("response_format.type", "must be text, json_object or json_schema.")


def _made(kind: str, param: str, value: Any) -> NamedConstraint:
    with spelled_as(JSON_SCHEMA_PARAM if kind == "json" else kind, param):
        return NamedConstraint(_constraint(kind, param, value), param)


def _constraint(kind: str, param: str, value: Any) -> Constraint:
    match kind, value:
        case "json", dict():
            return JsonSchemaConstraint(json.dumps(value, ensure_ascii=False))
        case "json", str():
            return JsonSchemaConstraint(value)
        case "json", _:
            raise invalid(param, "must be a JSON Schema: an object, or its text.")
        case "json_object", True:
            return JsonObjectConstraint()
        case "choice", list() if all(isinstance(each, str) for each in value):
            return ChoiceConstraint(tuple(value))
        case "choice", _:
            raise invalid(param, "must be an array of strings.")
        case "regex", str():
            return RegexConstraint(value)
        case "grammar", str():
            return GrammarConstraint(value)
        case _:
            raise invalid(param, "must be true." if kind == "json_object" else "must be a string.")
