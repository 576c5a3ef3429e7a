"""Reads a JSON Schema: refuses what cannot be kept, with its place, and spells the rest as the compiler takes it.

The compiler (llguidance) honours a keyword or refuses it, but does not say where it stands. So the keywords that it
lacks are looked for here, and so are the few cases in which what it lets through would not be valid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mantler.errors import invalid
from mantler.messages import JSON_SCHEMA_PARAM
from runtime_server.constraints.limits import MAX_SCHEMA_DEPTH

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

UNSUPPORTED = frozenset(
    {
        "$dynamicAnchor",
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
"""Keywords of JSON Schema that no mask is made for."""

_SCHEMAS = ("additionalItems", "additionalProperties", "items")
"""Keywords whose value is a schema."""
_LISTS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
"""Keywords whose value is an array of schemas."""
_MAPS = ("$defs", "definitions", "patternProperties", "properties")
"""Keywords whose value is an object with a schema under each name."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
MAX_PLACE_CHARS = 200

Json = dict[str, Any]

LAYOUT: JsonCompileOptions = {
    # A space may follow a comma or a colon and stands nowhere else: a small model that may write white space writes
    # nothing but white space, sooner or later.
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "lenient": False,
    "coerce_one_of": False,
}
"""How the compiler spells JSON. In a schema it stands under ``x-guidance``."""


def read_schema(text: str, param: str = JSON_SCHEMA_PARAM) -> Json:
    """The schema that ``text`` holds, ready for the compiler.

    Raises:
        MantlerError: INVALID_PARAMETER for ``param`` with the place in the schema that is at fault.
    """
    schema = _parse(text, param)
    if not isinstance(schema, dict):
        raise invalid(param, "must be a JSON object.")
    if "x-guidance" in schema:
        raise invalid(param, "#/x-guidance is not a keyword of JSON Schema.")
    for place, node in list(_nodes(schema)):
        fault = _fault(node)
        if fault is not None:
            keyword, complaint = fault
            raise invalid(param, f"{f'{place}/{keyword}'[:MAX_PLACE_CHARS]} {complaint}.")
        if node.get("uniqueItems") is False:
            del node["uniqueItems"]
        if _branches_exclude_one_another(node, schema):
            # Where one branch at most can match, both keywords mean the same, and this one is always supported.
            branches = node.pop("oneOf")
            node["anyOf"] = branches
    return schema


def _parse(text: str, param: str) -> Any:
    # Counted first: a reader that recurses would meet its own limit, and not say so.
    depth = deepest = 0
    for character in _STRING.sub("", text):
        if character in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}]":
            depth -= 1
    if deepest > MAX_SCHEMA_DEPTH:
        raise invalid(param, f"must be nested at most {MAX_SCHEMA_DEPTH} deep, got {deepest}.")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise invalid(param, "must be JSON text.") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _nodes(root: Json) -> Iterator[tuple[str, Json]]:
    """Every schema within ``root`` and its place as a JSON pointer. What is data, as in ``const``, is left out."""
    waiting: list[tuple[str, Any]] = [("#", root)]
    while waiting:
        place, node = waiting.pop()
        if not isinstance(node, dict):
            continue
        yield place, node
        waiting.extend((f"{place}/{name}", node.get(name)) for name in _SCHEMAS)
        for name in _LISTS:
            inner = node.get(name)
            if isinstance(inner, list):
                waiting.extend((f"{place}/{name}/{i}", item) for i, item in enumerate(inner))
        for name in _MAPS:
            inner = node.get(name)
            if isinstance(inner, dict):
                waiting.extend((f"{place}/{name}/{key}", item) for key, item in inner.items())


def _fault(node: Json) -> tuple[str, str] | None:
    """A keyword of ``node`` that cannot be kept, and what is wrong with it."""
    unsupported = sorted(UNSUPPORTED & node.keys())
    if unsupported:
        return unsupported[0], "is not supported"
    if node.get("uniqueItems") not in (None, False):
        return "uniqueItems", "is not supported"
    least = node.get("minProperties")
    required = node.get("required")
    named = len(required) if isinstance(required, list) else 0
    if isinstance(least, int | float) and least > max(1, named):
        # Names that the schema does not list may repeat, and a repeated name counts once.
        return "minProperties", f"must be at most {max(1, named)}, the number of required properties"
    return None


def _branches_exclude_one_another(node: Json, root: Json) -> bool:
    """Whether a property that every branch of ``oneOf`` requires has different constants in all of them."""
    branches = node.get("oneOf")
    if not isinstance(branches, list) or not branches or "anyOf" in node:
        return False
    tags = [_tags(_resolved(branch, root)) for branch in branches]
    for name in tags[0]:
        seen: set[str] = set()
        for tag in tags:
            values = tag.get(name)
            if values is None or values & seen:
                break
            seen |= values
        else:
            return True
    return False


def _tags(branch: Any) -> dict[str, set[str]]:
    """For each required property that takes constants only, these constants as JSON text."""
    if not isinstance(branch, dict) or branch.get("type") != "object":
        return {}
    required, properties = branch.get("required"), branch.get("properties")
    if not isinstance(required, list) or not isinstance(properties, dict):
        return {}
    tags = {}
    for name in required:
        inner = properties.get(name) if isinstance(name, str) else None
        if isinstance(inner, dict):
            values = [inner["const"]] if "const" in inner else inner.get("enum")
            # Numbers are left out: 1 and 1.0 are equal but spelled differently.
            if isinstance(values, list) and all(isinstance(value, str) for value in values):
                tags[name] = {json.dumps(value) for value in values}
    return tags


def _resolved(branch: Any, root: Json) -> Any:
    """``branch``, or what it refers to where it is a reference to a definition of ``root`` and nothing else."""
    if isinstance(branch, dict) and branch.keys() == {"$ref"} and isinstance(branch["$ref"], str):
        hash_sign, *path = branch["$ref"].split("/")
        if hash_sign == "#" and len(path) == 2 and isinstance(root.get(path[0]), dict):
            return root[path[0]].get(path[1])
    return branch
