"""The document that describes this API, in OpenAPI 3.1. Pure.

It is made of what serves the requests: the models that check bodies, the table of errors, and the schemas that tests
hold answers against.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any

from facade.answer_schemas import SCHEMAS
from facade.completion_body import CompletionBody
from facade.deadline import HEADER as DEADLINE
from facade.field_schemas import COMPLETION_SHAPES, DETOKENIZE_SHAPES, described
from facade.json_body import JsonBody
from facade.schema import ChatBody
from facade.token_bodies import DetokenizeBody, TokenizeBody
from mantler import __version__
from mantler.errors import TABLE, ErrorCode

Schema = dict[str, Any]

_KEYED = (ErrorCode.INVALID_API_KEY, ErrorCode.STORE_UNAVAILABLE)
_ANYWHERE = (ErrorCode.INVALID_REQUEST, ErrorCode.INTERNAL_ERROR)
_BEHIND = (ErrorCode.MACHINE_OFFLINE, ErrorCode.RUNTIME_UNAVAILABLE)
_OF_MODELS = (*_ANYWHERE, *_KEYED, *_BEHIND)
_OF_ONE_MODEL = (*_OF_MODELS, ErrorCode.MODEL_NOT_ALLOWED, ErrorCode.MODEL_NOT_FOUND)
_OF_POSTS = (
    *_OF_ONE_MODEL,
    ErrorCode.INVALID_PARAMETER,
    ErrorCode.UNSUPPORTED_PARAMETER,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED,
    ErrorCode.REQUEST_TOO_LARGE,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE,
    ErrorCode.RATE_LIMIT_EXCEEDED,
    ErrorCode.DEADLINE_EXCEEDED,
)
_OF_GENERATION = (*_OF_POSTS, ErrorCode.QUEUE_FULL)

_CHAT_EXAMPLE = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}
_COMPLETION_EXAMPLE = {"model": "smollm2:135m", "prompt": "The capital of France is", "max_tokens": 16}
_TOKENIZE_EXAMPLE = {"model": "smollm2:135m", "prompt": "Hello, world!"}
_DETOKENIZE_EXAMPLE = {"model": "smollm2:135m", "tokens": [19556, 28]}
_CALL_EXAMPLE = {"model": "smollm2:135m", "text": "Hello, world!"}
_SERVICE = {
    "name": "service",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "example": "GenerationService",
}
_METHOD = {**_SERVICE, "name": "method", "example": "CountTokens"}
_DEADLINE = {
    "name": DEADLINE,
    "in": "header",
    "description": "How long the request may take: up to eight digits and H, M or S; m, u or n for parts of a second.",
    "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,7}[HMS]$"},
    "example": "30S",
}
_MESSAGE = {"type": "object", "description": "A message of the protos in protobuf's JSON mapping."}
_MESSAGES = (
    "A stream of messages comes as server-sent events: lines `data: {...}`, an empty line after each, and an `event: "
    "error` as the last one where it failed."
)
_STREAM = (
    "With stream, server-sent events: lines `data: {...}` of chunks, an empty line after each, and `data: [DONE]` at "
    "the end. A failure after the first chunk is one last event with an error, and no `[DONE]` follows."
)


@cache
def openapi_document() -> Schema:
    """The whole document. The caller does not change it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Mantler",
            "version": __version__,
            "description": "Chat completions and completions as OpenAI has them, from your own machines. Fields that "
            "are not known are ignored, null means the default, and what is known but not supported is refused.",
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "A key, `mk_live_...`."}},
            "schemas": {**SCHEMAS, **_body_schemas(), "Message": _MESSAGE},
        },
    }


def _paths() -> Schema:
    model_id = {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "A model's name. It may hold slashes.",
        "schema": {"type": "string", "minLength": 1},
        "example": "smollm2:135m",
    }
    health = _operation("health", "Whether the facade serves.", {"200": _json("Health")}, (ErrorCode.INTERNAL_ERROR,))
    models = _operation("listModels", "The models that the key may use now.", {"200": _json("ModelList")}, _OF_MODELS)
    model = _operation("getModel", "One of them.", {"200": _json("Model")}, _OF_ONE_MODEL)
    chat = _operation(
        "createChatCompletion",
        "The next turns of a conversation, whole or as a stream.",
        {"200": _generated("ChatCompletion", "ChatCompletionChunk")},
        _OF_GENERATION,
    )
    text = _operation(
        "createCompletion",
        "How texts go on, whole or as a stream.",
        {"200": _generated("Completion", "CompletionChunk")},
        _OF_GENERATION,
    )
    call = _operation(
        "call",
        f"Any method of the services that are served over gRPC, but those that read a stream, as JSON. {_MESSAGES}",
        {"200": _called()},
        (*_OF_GENERATION, ErrorCode.ROUTE_NOT_FOUND),
    )
    tokens = _operation("tokenize", "The tokens of a text or a conversation.", {"200": _json("Tokens")}, _OF_POSTS)
    spelled = _operation("detokenize", "The text of tokens.", {"200": _json("Text")}, _OF_POSTS)
    return {
        "/health": {"get": {**health, "security": []}},
        "/v1/models": {"get": models},
        "/v1/models/{id}": {"get": {**model, "parameters": [model_id]}},
        "/v1/chat/completions": _post(chat, "ChatCompletionRequest", _CHAT_EXAMPLE),
        "/v1/completions": _post(text, "CompletionRequest", _COMPLETION_EXAMPLE),
        "/v1/tokenize": _post(tokens, "TokenizeRequest", _TOKENIZE_EXAMPLE),
        "/v1/detokenize": _post(spelled, "DetokenizeRequest", _DETOKENIZE_EXAMPLE),
        "/mantler.v1.{service}/{method}": _post(call, "Message", _CALL_EXAMPLE, _SERVICE, _METHOD),
    }


def _post(operation: Schema, body: str, example: Schema, *parameters: Schema) -> Schema:
    return {"post": {**operation, "parameters": [*parameters, _DEADLINE], "requestBody": _body(body, example)}}


def _operation(name: str, summary: str, answers: Schema, errors: Iterable[ErrorCode]) -> Schema:
    return {"operationId": name, "summary": summary, "responses": {**answers, **_error_answers(errors)}}


def _error_answers(errors: Iterable[ErrorCode]) -> Schema:
    """One answer for each status, with the codes that it stands for."""
    by_status: dict[int, list[ErrorCode]] = {}
    for code in errors:
        by_status.setdefault(TABLE[code].http_status, []).append(code)
    return {str(status): _error_answer(status, codes) for status, codes in sorted(by_status.items())}


def _error_answer(status: int, codes: Iterable[ErrorCode]) -> Schema:
    names = ", ".join(sorted(code.value for code in codes))
    answer: Schema = {"description": f"Error codes: {names}.", "content": {"application/json": _schema("Error")}}
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        seconds = {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds until a retry makes sense."}
        answer["headers"] = {"Retry-After": seconds}
    return answer


def _json(name: str) -> Schema:
    return {"description": "The answer.", "content": {"application/json": _schema(name)}}


def _generated(whole: str, chunk: str) -> Schema:
    # Of each event, as OpenAPI 3.2 has it: 3.1 says nothing about streams.
    content = {"anyOf": [_schema(chunk)["schema"], _schema("Error")["schema"]]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    event = {"type": "object", "properties": {"data": {"anyOf": [{"const": "[DONE]"}, data]}}, "required": ["data"]}
    return {
        "description": f"The answer. {_STREAM}",
        "content": {"application/json": _schema(whole), "text/event-stream": {"schema": event}},
    }


def _called() -> Schema:
    event = {"type": "object", "properties": {"data": {"type": "string", "contentMediaType": "application/json"}}}
    content = {"application/json": _schema("Message"), "text/event-stream": {"schema": event}}
    return {"description": "The answer, or a stream of answers.", "content": content}


def _schema(name: str) -> Schema:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def _body(name: str, example: Schema) -> Schema:
    return {"required": True, "content": {"application/json": {**_schema(name), "example": example}}}


def _body_schemas() -> Schema:
    """Of the models that check bodies, what they consist of included."""
    return {
        **_body_schema("ChatCompletionRequest", ChatBody),
        **_body_schema("CompletionRequest", CompletionBody, COMPLETION_SHAPES),
        **_body_schema("TokenizeRequest", TokenizeBody),
        **_body_schema("DetokenizeRequest", DetokenizeBody, DETOKENIZE_SHAPES),
    }


def _body_schema(name: str, body: type[JsonBody], own: Schema | None = None) -> Schema:
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    parts = schema.pop("$defs", {})
    return {**parts, name: described(schema, own)}
