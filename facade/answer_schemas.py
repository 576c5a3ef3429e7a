"""What answers look like, as JSON Schema. Objects are closed, so that a test sees drift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mantler.errors import TABLE, ErrorCode
from mantler.messages import FinishReason

Schema = dict[str, Any]


def _closed(properties: Mapping[str, Schema], optional: frozenset[str] = frozenset()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": False}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_STRING: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_REASON: Schema = {"enum": [reason.value for reason in FinishReason]}

_CANDIDATE = {
    "token": _STRING,
    "logprob": {"type": "number", "maximum": 0},
    "bytes": _list_of({"type": "integer", "minimum": 0, "maximum": 255}),
}
_LOGPROBS = _closed(
    {
        "content": _list_of(_closed({**_CANDIDATE, "top_logprobs": _list_of(_closed(_CANDIDATE))})),
        "refusal": {"type": "null"},
    }
)
_ARGUMENTS = {"arguments": _STRING}
_CALL = {"id": _STRING, "type": {"const": "function"}, "function": _closed({"name": _STRING, **_ARGUMENTS})}
_MESSAGE = {
    "role": {"const": "assistant"},
    "content": _or_null(_STRING),
    "refusal": {"type": "null"},
    "reasoning_content": _STRING,
    "tool_calls": {**_list_of(_closed(_CALL)), "minItems": 1},
}
_DELTA = {
    "role": {"const": "assistant"},
    "content": _STRING,
    "refusal": {"type": "null"},
    "reasoning_content": _STRING,
    "tool_calls": _list_of(
        {"anyOf": [_closed({"index": _COUNT, **_CALL}), _closed({"index": _COUNT, "function": _closed(_ARGUMENTS)})]}
    ),
}


_NUMBERS = _list_of({"type": "number", "maximum": 0})
_COMPLETION_LOGPROBS = _closed(
    {
        "tokens": _list_of(_STRING),
        "token_logprobs": _NUMBERS,
        "top_logprobs": _or_null(_list_of({"type": "object", "additionalProperties": {"type": "number"}})),
        "text_offset": _list_of(_COUNT),
    }
)


def _shared(kind: str) -> dict[str, Schema]:
    return {
        "id": _STRING,
        "object": {"const": kind},
        "created": {"type": "integer", "description": "Seconds since 1970."},
        "model": _STRING,
        "system_fingerprint": _or_null(_STRING),
    }


def _choice(content: Mapping[str, Schema], reason: Schema, logprobs: Schema = _LOGPROBS) -> Schema:
    return _closed({"index": _COUNT, **content, "logprobs": _or_null(logprobs), "finish_reason": reason})


def _completion(reason: Schema) -> dict[str, Schema]:
    choice = _choice({"text": _STRING}, reason, _COMPLETION_LOGPROBS)
    return {**_shared("text_completion"), "choices": _list_of(choice)}


SCHEMAS: dict[str, Schema] = {
    "Error": _closed(
        {
            "error": _closed(
                {
                    "message": _STRING,
                    "type": {"enum": sorted({row.type for row in TABLE.values()})},
                    "param": _or_null(_STRING),
                    "code": {"enum": [code.value for code in ErrorCode]},
                }
            )
        }
    ),
    "Health": _closed({"status": {"const": "ok"}}),
    "Model": _closed(
        {"id": _STRING, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": _STRING}
    ),
    "ModelList": _closed({"object": {"const": "list"}, "data": _list_of(_ref("Model"))}),
    "Usage": _closed(
        {
            "prompt_tokens": _COUNT,
            "completion_tokens": _COUNT,
            "total_tokens": _COUNT,
            "prompt_tokens_details": _closed({"cached_tokens": _COUNT}),
            "completion_tokens_details": _closed({"reasoning_tokens": _COUNT}),
        }
    ),
    "ChatCompletion": _closed(
        {
            **_shared("chat.completion"),
            "choices": _list_of(
                _choice(
                    {
                        "message": _closed(_MESSAGE, frozenset({"reasoning_content", "tool_calls"})),
                    },
                    _REASON,
                )
            ),
            "usage": _ref("Usage"),
        }
    ),
    "ChatCompletionChunk": _closed(
        {
            **_shared("chat.completion.chunk"),
            "choices": _list_of(_choice({"delta": _closed(_DELTA, frozenset(_DELTA))}, _or_null(_REASON))),
            "usage": _or_null(_ref("Usage")),
        },
        frozenset({"usage"}),
    ),
    "Completion": _closed({**_completion(_REASON), "usage": _ref("Usage")}),
    "CompletionChunk": _closed(
        {**_completion(_or_null(_REASON)), "usage": _or_null(_ref("Usage"))}, frozenset({"usage"})
    ),
    "Tokens": _closed({"count": _COUNT, "max_model_len": _COUNT, "tokens": _list_of(_COUNT)}),
    "Text": _closed({"prompt": _STRING}),
}
"""By name."""
