"""What the output must match, in each of the forms that clients send."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from mantler import messages as m
from mantler.errors import invalid
from tests.facade.conftest import Facade, chat
from tests.fake_runtime import Said

SCHEMA = {"type": "object", "properties": {"zebra": {"type": "integer"}, "apple": {"const": "é"}}}
TEXT = '{"type": "object", "properties": {"zebra": {"type": "integer"}, "apple": {"const": "é"}}}'
NAMED = {"name": "fruit-1", "description": "A fruit.", "schema": SCHEMA}

FORMS: list[tuple[dict[str, Any], m.Constraint | None, str]] = [
    ({"response_format": {"type": "text"}}, None, ""),
    ({"response_format": {"type": "json_object"}}, m.JsonObjectConstraint(), "response_format"),
    ({"guided_json": SCHEMA}, m.JsonSchemaConstraint(TEXT), "guided_json"),
    ({"guided_json": TEXT}, m.JsonSchemaConstraint(TEXT), "guided_json"),
    ({"regex": "a+"}, m.RegexConstraint("a+"), "regex"),
    ({"guided_regex": "a+"}, m.RegexConstraint("a+"), "guided_regex"),
    ({"choice": ["a", "b"]}, m.ChoiceConstraint(("a", "b")), "choice"),
    ({"guided_choice": ["a"]}, m.ChoiceConstraint(("a",)), "guided_choice"),
    ({"grammar": 'start: "a"'}, m.GrammarConstraint('start: "a"'), "grammar"),
    ({"guided_grammar": 'start: "a"'}, m.GrammarConstraint('start: "a"'), "guided_grammar"),
    ({"structured_outputs": {"json": SCHEMA}}, m.JsonSchemaConstraint(TEXT), "structured_outputs.json"),
    ({"structured_outputs": {"regex": "a", "json": None}}, m.RegexConstraint("a"), "structured_outputs.regex"),
    ({"structured_outputs": {"json_object": True}}, m.JsonObjectConstraint(), "structured_outputs.json_object"),
    ({"structured_outputs": {}, "response_format": None, "regex": None}, None, ""),
]
FORMS += [
    (
        {"response_format": {"type": "json_schema", "json_schema": {**NAMED, **strict}}},
        m.JsonSchemaConstraint(TEXT),
        "response_format.json_schema.schema",
    )
    for strict in ({}, {"strict": True}, {"strict": False}, {"strict": None})
]


async def refusing(request: m.GenerateRequest) -> AsyncGenerator[Said, None]:
    """Refuses a constraint as the runtime does."""
    assert request.constraint is not None
    raise invalid(m.constraint_param(request.constraint), "cannot be kept.")
    yield


@pytest.mark.parametrize(("fields", "constraint", "param"), FORMS, ids=lambda value: repr(value)[:60])
async def test_every_form_reaches_the_runtime_and_is_named_by_its_errors(
    facade: Facade, fields: dict[str, Any], constraint: m.Constraint | None, param: str
) -> None:
    assert (await facade.post(chat(**fields)))[0] == 200
    assert facade.runtime.requests[0].constraint == constraint
    if constraint is None:
        return
    facade.runtime.script = refusing
    for stream in (False, True):
        status, body, _ = await facade.post(chat(stream=stream, **fields))
        assert (status, body["error"]["param"]) == (400, param)
        assert body["error"]["message"] == f"{param}: cannot be kept."


async def test_other_errors_of_the_runtime_are_as_they_are(facade: Facade) -> None:
    async def script(_: m.GenerateRequest) -> AsyncGenerator[Said, None]:
        raise m.context_exceeded(9000, 8192)
        yield

    facade.runtime.script = script
    _, body, _ = await facade.post(chat(guided_regex="a"))
    assert body["error"]["message"] == m.context_exceeded(9000, 8192).message
