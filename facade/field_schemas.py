"""Ranges and shapes of a request's fields as JSON Schema, where the models of the bodies have no more than a type.

The ranges are kept by :mod:`mantler.messages`; a test sends each bound, and what lies beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from facade.completion_body import MAX_LOGPROBS
from facade.generation_body import MAX_STOP_STRINGS
from facade.prompts import MAX_PROMPTS, MAX_TOKEN_ID
from mantler.messages import (
    MAX_CACHE_SALT_CHARS,
    MAX_CHOICES,
    MAX_LOGIT_BIAS,
    MAX_LOGIT_BIASES,
    MAX_MESSAGES,
    MAX_PENALTY,
    MAX_PRIORITY,
    MAX_REPETITION_PENALTY,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_TOKEN_IDS,
    MAX_TEMPLATE_VARIABLES,
    MAX_TOKENS,
    MAX_TOOL_CHARS,
    MAX_TOOL_NAME_CHARS,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    Role,
    ToolChoiceMode,
)

Schema = dict[str, Any]

RANGES: dict[str, Schema] = {
    "n": {"minimum": 1, "maximum": MAX_CHOICES},
    "temperature": {"minimum": 0, "maximum": 2},
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "top_k": {"minimum": 0, "maximum": MAX_TOKENS},
    "min_p": {"minimum": 0, "maximum": 1},
    "seed": {"minimum": -(2**63), "maximum": 2**63 - 1},
    "presence_penalty": {"minimum": -MAX_PENALTY, "maximum": MAX_PENALTY},
    "frequency_penalty": {"minimum": -MAX_PENALTY, "maximum": MAX_PENALTY},
    "repetition_penalty": {"exclusiveMinimum": 0, "maximum": MAX_REPETITION_PENALTY},
    "max_tokens": {"minimum": 1, "maximum": MAX_TOKENS},
    "max_completion_tokens": {"minimum": 1, "maximum": MAX_TOKENS},
    "min_tokens": {"minimum": 0, "maximum": MAX_TOKENS},
    "priority": {"minimum": 0, "maximum": MAX_PRIORITY},
    "top_logprobs": {"minimum": 0, "maximum": MAX_TOP_LOGPROBS},
}
"""Bounds of numbers."""

_STOP_STRING: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_CHARS}
_TEXT_PART: Schema = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
_MESSAGE: Schema = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": [role.value for role in Role]},
        "content": {
            "anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": _TEXT_PART}, {"type": "null"}]
        },
        "name": {"type": ["string", "null"]},
        "tool_call_id": {"type": ["string", "null"]},
        "reasoning_content": {"type": ["string", "null"]},
    },
}


def _named(kind: str, properties: Schema) -> Schema:
    """An object of a kind, with its own properties under the kind's name. The first one is required."""
    inner = {"type": "object", "required": [next(iter(properties))], "properties": properties}
    return {"type": "object", "required": ["type", kind], "properties": {"type": {"const": kind}, kind: inner}}


_NAME: Schema = {"type": "string", "pattern": f"^[A-Za-z0-9_-]{{1,{MAX_TOOL_NAME_CHARS}}}$"}
_TOOL: Schema = _named(
    "function",
    {
        "name": _NAME,
        "description": {"type": ["string", "null"], "maxLength": MAX_TOOL_CHARS},
        "parameters": {"type": ["object", "null"], "description": "A JSON Schema."},
        "strict": {"type": ["boolean", "null"]},
    },
)

_TOKEN_ID: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID}
_TOKEN_IDS: Schema = {"type": "array", "minItems": 1, "items": _TOKEN_ID}

_PROMPT: Schema = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": {"type": "string"}},
        _TOKEN_IDS,
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": _TOKEN_IDS},
    ]
}

COMPLETION_SHAPES: dict[str, Schema] = {
    "prompt": _PROMPT,
    "logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_LOGPROBS},
}
"""Fields of completions that are others than those of the same name elsewhere."""

DETOKENIZE_SHAPES: dict[str, Schema] = {"tokens": _TOKEN_IDS}

SHAPES: dict[str, Schema] = {
    "messages": {"type": "array", "minItems": 1, "maxItems": MAX_MESSAGES, "items": _MESSAGE},
    "stop": {
        "anyOf": [
            _STOP_STRING,
            {"type": "array", "maxItems": MAX_STOP_STRINGS, "items": _STOP_STRING},
            {"type": "null"},
        ]
    },
    "stop_token_ids": {
        "type": ["array", "null"],
        "maxItems": MAX_STOP_TOKEN_IDS,
        "items": _TOKEN_ID,
    },
    "logit_bias": {
        "type": ["object", "null"],
        "maxProperties": MAX_LOGIT_BIASES,
        "propertyNames": {"pattern": "^[0-9]{1,10}$"},
        "additionalProperties": {"type": "number", "minimum": -MAX_LOGIT_BIAS, "maximum": MAX_LOGIT_BIAS},
    },
    "tools": {"type": ["array", "null"], "maxItems": MAX_TOOLS, "items": _TOOL},
    "tool_choice": {
        "anyOf": [{"enum": [*(mode.value for mode in ToolChoiceMode), None]}, _named("function", {"name": _NAME})]
    },
    "chat_template_kwargs": {"type": ["object", "null"], "maxProperties": MAX_TEMPLATE_VARIABLES},
    "cache_salt": {"type": ["string", "null"], "minLength": 1, "maxLength": MAX_CACHE_SALT_CHARS},
}
"""Fields that the models do not describe in full."""


def described(schema: Schema, own: Mapping[str, Schema] | None = None) -> Schema:
    """The schema of a body, with what is known of its fields put in.

    Args:
        own: shapes that hold in this body only.
    """
    shapes = {**SHAPES, **(own or {})}
    properties = {name: _described_field(name, field, shapes) for name, field in schema["properties"].items()}
    return {**schema, "properties": properties}


def _described_field(name: str, field: Schema, shapes: Mapping[str, Schema]) -> Schema:
    if name in shapes:
        return shapes[name]
    # A bound says nothing of null, so it may stand beside the alternatives.
    return {**field, **RANGES.get(name, {})}
