"""What is invalid, not supported, or made to hang, crash or exhaust: each is a 400, in bounded time."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from mantler.errors import ErrorCode, MantlerError
from mantler.messages import (
    JSON_SCHEMA_PARAM,
    ChoiceConstraint,
    Constraint,
    GrammarConstraint,
    JsonSchemaConstraint,
    RegexConstraint,
)
from runtime_server.constraints.compiler import Compiler
from runtime_server.constraints.limits import COMPILE_TIMEOUT_S

ORDINARY = RegexConstraint("[a-z]+")


def schema(value: Any) -> JsonSchemaConstraint:
    return JsonSchemaConstraint(value if isinstance(value, str) else json.dumps(value))


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


def chain(length: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {
        f"a{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(length)
    }
    return {"$defs": definitions | {f"a{length}": {"type": "string"}}, "$ref": "#/$defs/a0"}


async def refusal(compiler: Compiler, constraint: Constraint) -> MantlerError:
    started = time.monotonic()
    with pytest.raises(MantlerError) as refused:
        await compiler.matcher(constraint, ends_early=True)
    # The tokenizer's tables and the process that tries constraints may have to start.
    assert time.monotonic() - started < COMPILE_TIMEOUT_S + 20
    assert refused.value.code is ErrorCode.INVALID_PARAMETER
    assert len(refused.value.message) < 500
    return refused.value


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("{", "must be JSON text"),
        ('{"minimum": NaN}', "must be JSON text"),
        ("[]", "must be a JSON object"),
        ("true", "must be a JSON object"),
        (nested(101), "at most 100 deep, got 102"),
        (nested(40_000 // 10), "at most 100 deep"),
        ({"x-guidance": {"lenient": True}}, "#/x-guidance"),
        ({"properties": {"a": {"items": {"not": {}}}}}, "#/properties/a/items/not is not supported"),
        ({"anyOf": [{}, {"uniqueItems": True}]}, "#/anyOf/1/uniqueItems is not supported"),
        ({"type": "object", "minProperties": 2}, "#/minProperties must be at most 1"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "use anyOf instead"),
        ({"type": "foo"}, "Invalid type: foo"),
        ({"pattern": "(?=a)b", "type": "string"}, "look-around"),
        ({"format": "idn-email"}, "Unknown format"),
        ({"$ref": "#/absent"}, "does not exist"),
        ({"$ref": "https://example.com/schema"}, "cannot be compiled"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "incompatible types"),
        ({"const": "\ud800"}, "cannot be compiled"),
        # Endless: nothing finite matches.
        ({"$ref": "#"}, "no output can match it"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no output"),
        # These would overflow the compiler's stack, keep it busy for ever, or multiply.
        (chain(1000), "more time or memory"),
        ({"type": "integer", "multipleOf": 123_456_789}, "more time or memory"),
        ({"allOf": [{"anyOf": [{"properties": {f"p{i}": {"const": j}}} for j in range(9)]} for i in range(9)]}, ""),
        ({"type": "integer", "minimum": int("1" * 300)}, "cannot be compiled"),
    ],
)
async def test_schemas(compiler: Compiler, made: Any, words: str) -> None:
    error = await refusal(compiler, schema(made))
    assert error.param == JSON_SCHEMA_PARAM
    assert words in error.message
    # Whatever it was, the next request is served.
    await compiler.matcher(ORDINARY, ends_early=True)


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (RegexConstraint("(("), "unclosed group"),
        (RegexConstraint("(?=a)b"), "look-around"),
        (RegexConstraint(r"(a)\1"), "backreferences"),
        (RegexConstraint("(" * 8000 + "a" + ")" * 8000), "cannot be compiled"),
        (RegexConstraint(r"[^\x00-\U0010ffff]"), "no output can match it"),
        (GrammarConstraint("start: ("), "Expected token"),
        (GrammarConstraint("start: start"), "no output can match it"),
        (GrammarConstraint("start: absent"), "cannot be compiled"),
        (GrammarConstraint("start: " + "(" * 20_000 + '"a"' + ")" * 20_000), "too deeply nested"),
        (GrammarConstraint("start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(6000)) + 'a6000: "a"'), "memory"),
        (GrammarConstraint("start: A0\n" + "".join(f"A{i}: A{i + 1} A{i + 1}\n" for i in range(40)) + 'A40: "a"'), ""),
    ],
)
async def test_patterns_and_grammars(compiler: Compiler, constraint: Constraint, words: str) -> None:
    assert words in (await refusal(compiler, constraint)).message
    await compiler.matcher(ORDINARY, ends_early=True)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(.*a){25}", "(a|b)*a(a|b){30}", "((a{1,1000}){1,1000}){1,1000}"])
async def test_patterns_that_backtrack_elsewhere_are_harmless_here(compiler: Compiler, pattern: str) -> None:
    matcher = await compiler.matcher(RegexConstraint(pattern), ends_early=True)
    matcher.expect()
    matcher.make()
    assert matcher.mask().allows(ord("a"))


def test_what_is_too_long_is_refused_unread() -> None:
    for make in (
        lambda: schema({"enum": [f"value {i}" for i in range(100_000)]}),
        lambda: GrammarConstraint('start: "a"\n' * 100_000),
        lambda: RegexConstraint("a" * 1_000_000),
        lambda: ChoiceConstraint(tuple(map(str, range(100_000)))),
    ):
        with pytest.raises(MantlerError) as refused:
            make()
        assert refused.value.code is ErrorCode.INVALID_PARAMETER
