"""Made-up JSON Schemas of every kind that requests hold: number N is the same for ever, since N is its seed.

Strings, arrays and numbers are bounded, so that even a model that draws at random comes to an end.
"""

from __future__ import annotations

import json
from decimal import Decimal
from random import Random
from typing import Any

from jsonschema import Draft202012Validator

Json = dict[str, Any]

WORDS = ("name", "age", "kind", "size", "city", "a b", "größe", "is_on", "x-1", 'quo"te', "日本", "tags")
PATTERNS = ("^[a-z]{2,5}$", "^[A-Z][a-z]*-[0-9]{2}$", "^(red|green|blue)$", "^\\d{3}-\\d{4}$", "^a.{0,3}b$", "[xyz]$")
FORMATS = ("date", "date-time", "time", "uuid", "ipv4", "ipv6", "email", "hostname")
REFUSED: tuple[Json, ...] = (
    {"not": {"type": "string"}},
    {"type": "array", "uniqueItems": True},
    {"if": {"type": "string"}, "then": {"minLength": 2}},
    {"oneOf": [{"type": "number"}, {"type": "integer"}]},
    {"type": "object", "minProperties": 2, "additionalProperties": {"type": "null"}},
    {"type": "string", "format": "idn-email"},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"$ref": "#/$defs/absent"},
)
"""Schemas that no masks are made for."""


def schema(number: int) -> Json:
    """Schema ``number`` of the corpus. About one in 25 uses what is not supported."""
    random = Random(number)
    if random.random() < 0.04:
        return random.choice(REFUSED)
    kind = random.choice((_tree, _list, _tagged_union, _nested, _with_definitions))
    return kind(random)


def is_valid(made: Json, text: str) -> bool:
    """Whether ``text`` is JSON that is valid against the schema."""
    checker = Draft202012Validator.FORMAT_CHECKER
    # A leap second is a second of RFC 3339, though the checker only knows those at midnight.
    text = text.replace(":60", ":59")
    # As exact numbers: one that has many digits and lies just within a bound would be rounded to the bound itself.
    return Draft202012Validator(made, format_checker=checker).is_valid(json.loads(text, parse_float=Decimal))


def _tree(random: Random) -> Json:
    node = {
        "type": "object",
        "properties": {
            "value": _leaf(random),
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
        },
        "required": ["value"],
        "additionalProperties": False,
    }
    return {"$defs": {"node": node}, "$ref": "#/$defs/node"}


def _list(random: Random) -> Json:
    least = random.randint(0, 2)
    return {"type": "array", "items": _node(random, 2), "minItems": least, "maxItems": least + random.randint(0, 2)}


def _tagged_union(random: Random) -> Json:
    branches = {}
    for name in random.sample(WORDS, random.randint(2, 4)):
        properties = {"type": {"const": name}, "data": _leaf(random)}
        branches[name] = {"type": "object", "properties": properties, "required": ["type"]} | _closed()
    keyword = random.choice(("anyOf", "oneOf"))
    if random.random() < 0.5:
        return {keyword: list(branches.values())}
    places = [f"b{i}" for i in range(len(branches))]
    return {
        "$defs": dict(zip(places, branches.values(), strict=True)),
        keyword: [{"$ref": f"#/$defs/{place}"} for place in places],
    }


def _nested(random: Random) -> Json:
    return _object(random, 3)


def _with_definitions(random: Random) -> Json:
    made = _object(random, 1)
    made["$defs"] = {"part": _object(random, 0)}
    made["properties"]["part"] = {"$ref": "#/$defs/part"}
    made["allOf"] = [{"type": "object", "required": ["part"]}]
    return made


def _node(random: Random, depth: int) -> Json:
    if depth == 0 or random.random() < 0.4:
        return _leaf(random)
    kind = random.randrange(5)
    if kind == 0:
        return {"type": "array", "items": _node(random, depth - 1), "maxItems": 2}
    if kind == 1:
        items = [_leaf(random) for _ in range(random.randint(1, 3))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if kind == 2:
        return {"anyOf": [_leaf(random), _node(random, depth - 1)]}
    return _object(random, depth - 1)


def _object(random: Random, depth: int) -> Json:
    names = random.sample(WORDS, random.randint(1, 4))
    made: Json = {"type": "object", "properties": {name: _node(random, depth) for name in names}}
    if random.random() < 0.7:
        made["required"] = random.sample(names, random.randint(1, len(names)))
    rest = random.random()
    if rest < 0.15:
        made["additionalProperties"] = {"type": "integer", "minimum": 0, "maximum": 9}
    elif rest < 0.25:
        made["patternProperties"] = {"^p_[a-z]{1,3}$": {"type": "boolean"}}
        made |= _closed()
    else:
        made |= _closed()
    return made


def _closed() -> Json:
    return {"additionalProperties": False}


def _leaf(random: Random) -> Json:
    return random.choice((_string, _pattern, _format, _integer, _number, _enum, _const, _nullable))(random)


def _string(random: Random) -> Json:
    least = random.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + random.randint(0, 6)}


def _pattern(random: Random) -> Json:
    return {"type": "string", "pattern": random.choice(PATTERNS), "maxLength": 12}


def _format(random: Random) -> Json:
    return {"type": "string", "format": random.choice(FORMATS)}


def _integer(random: Random) -> Json:
    low = random.randint(-1000, 1000)
    made: Json = {"type": "integer", "minimum": low, "maximum": low + random.randint(0, 5000)}
    if random.random() < 0.2:
        return {"type": "integer", "minimum": 0, "exclusiveMaximum": 1000, "multipleOf": random.choice((2, 5, 7, 25))}
    return made


def _number(random: Random) -> Json:
    low = random.randint(-50, 50) / 4
    return {"type": "number", "exclusiveMinimum": low, "maximum": low + random.randint(1, 100) / 4}


def _enum(random: Random) -> Json:
    return {"enum": random.sample(("red", "grün", 1, -2.5, None, True, [1, 2], {"k": "v"}), random.randint(1, 5))}


def _const(random: Random) -> Json:
    return {"const": random.choice(("fixed", "<|im_end|>", 0, False, None, {"deep": [1, {"x": ""}]}))}


def _nullable(random: Random) -> Json:
    return {"type": [random.choice(("boolean", "integer")), "null"], "minimum": 0, "maximum": 99}
