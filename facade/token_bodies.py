"""The JSON of requests about tokens."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from facade.conversation import ConversationBody, chat_prompt
from facade.json_body import JsonBody, json_object, validated
from facade.options import TOKENIZE_NO_OPS, refuse_unsupported
from mantler.errors import invalid
from mantler.messages import MAX_MESSAGES, ChatPrompt, TextPrompt


class TokenizeBody(ConversationBody):
    """The body of ``POST /v1/tokenize``, which has a prompt or messages."""

    model: str = Field(min_length=1)
    prompt: str | None = None
    messages: list[Any] | None = Field(None, max_length=MAX_MESSAGES)


class DetokenizeBody(JsonBody):
    """The body of ``POST /v1/detokenize``."""

    model: str = Field(min_length=1)
    tokens: list[Any]


def parse_tokenize_body(raw: bytes) -> TokenizeBody:
    """The request's body. Raises ``MantlerError`` naming the parameter at fault."""
    given = json_object(raw)
    body = validated(given, TokenizeBody)
    refuse_unsupported(given, TOKENIZE_NO_OPS)
    return body


def prompt_to_count(body: TokenizeBody) -> TextPrompt | ChatPrompt:
    """What is to be tokenised. Raises ``MantlerError`` where there is nothing or too much."""
    if body.prompt is not None and body.messages is not None:
        raise invalid("messages", "cannot be combined with prompt.")
    if body.prompt is not None:
        return TextPrompt(body.prompt)
    if body.messages is None:
        raise invalid("prompt", "is required, or messages.")
    return chat_prompt(body.messages, body)


def parse_detokenize_body(raw: bytes) -> DetokenizeBody:
    """The request's body. Raises ``MantlerError`` naming the parameter at fault."""
    return validated(json_object(raw), DetokenizeBody)
