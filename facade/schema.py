"""The JSON of a chat completion request, read into a :class:`~mantler.messages.GenerateRequest`.

Types are checked in the facade; ranges are checked by :mod:`mantler.messages`, which every entrance shares. Fields
that are not known are ignored and ``null`` means the default, as with OpenAI. Every error names its parameter.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from facade.conversation import ConversationBody, chat_prompt
from facade.generation_body import (
    GenerationBody,
    check_stream_options,
    max_tokens_spelling,
    request_priority,
    sampling_params,
    stop_params,
)
from facade.json_body import json_object, validated
from facade.options import NO_OPS, refuse_unsupported
from facade.structured_outputs import StructuredOutputsBody, named_constraint
from mantler.errors import invalid
from mantler.messages import MAX_MESSAGES, GenerateRequest, LogprobsParams


class ChatBody(GenerationBody, ConversationBody, StructuredOutputsBody):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Any] = Field(max_length=MAX_MESSAGES)
    logprobs: bool | None = None
    top_logprobs: int | None = None


def parse_chat_body(raw: bytes) -> ChatBody:
    """The request's body. Raises INVALID_REQUEST for what is no JSON object, else errors that name a parameter."""
    given = json_object(raw)
    body = validated(given, ChatBody)
    refuse_unsupported(given, NO_OPS)
    check_stream_options(body)
    return body


def to_generate_request(body: ChatBody, request_id: str) -> GenerateRequest:
    """What the runtime is asked for. Raises ``MantlerError`` naming the parameter that is out of range."""
    asked = named_constraint(body)
    return GenerateRequest(
        request_id=request_id,
        model=body.model,
        prompt=chat_prompt(body.messages, body),
        sampling=sampling_params(body),
        stop=stop_params(body),
        logprobs=_logprobs(body),
        n=1 if body.n is None else body.n,
        priority=request_priority(body),
        cache_salt=body.cache_salt,
        constraint=None if asked is None else asked.constraint,
    )


def client_spelling(body: ChatBody) -> dict[str, str]:
    """How the client spelled parameters that the runtime's errors name otherwise."""
    asked = named_constraint(body)
    return {"max_tokens": max_tokens_spelling(body), **({} if asked is None else asked.spelling)}


def _logprobs(body: ChatBody) -> LogprobsParams | None:
    wanted = LogprobsParams(body.top_logprobs or 0)
    if body.logprobs:
        return wanted
    if wanted.top:
        raise invalid("top_logprobs", "is only allowed when logprobs is true.")
    return None
