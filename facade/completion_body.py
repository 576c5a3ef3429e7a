"""The JSON of a completion request, read into one :class:`~mantler.messages.GenerateRequest` for each prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from facade.generation_body import (
    GenerationBody,
    check_stream_options,
    max_tokens_spelling,
    request_priority,
    sampling_params,
    stop_params,
)
from facade.json_body import json_object, validated
from facade.options import COMPLETION_NO_OPS, refuse_unsupported
from facade.prompts import read_prompts
from facade.structured_outputs import StructuredOutputsBody, named_constraint
from mantler.errors import invalid, unsupported
from mantler.messages import MAX_CHOICES, GenerateRequest, LogprobsParams

DEFAULT_MAX_TOKENS = 16
"""OpenAI's for completions: what is left of the context, the default of conversations, fits no text without an end."""
MAX_LOGPROBS = 5
"""OpenAI's for completions."""


class CompletionBody(GenerationBody, StructuredOutputsBody):
    """The body of ``POST /v1/completions``."""

    prompt: Any
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What a body asks for."""

    requests: tuple[GenerateRequest, ...]
    """One for each prompt."""
    spelling: dict[str, str]
    """How the client spelled parameters that the runtime's errors name otherwise."""


def parse_completion_body(raw: bytes) -> CompletionBody:
    """The request's body. Raises INVALID_REQUEST for what is no JSON object, else errors that name a parameter."""
    given = json_object(raw)
    body = validated(given, CompletionBody)
    refuse_unsupported(given, COMPLETION_NO_OPS)
    check_stream_options(body)
    if body.max_tokens is None and body.max_completion_tokens is None:
        return body.model_copy(update={"max_tokens": DEFAULT_MAX_TOKENS})
    return body


def read_completion(body: CompletionBody, request_id: str) -> CompletionRequest:
    """What the runtime is asked for. Raises ``MantlerError`` naming the parameter that is out of range."""
    prompts = read_prompts(body.prompt)
    asked = named_constraint(body)
    n = 1 if body.n is None else body.n
    if n > 1 and n * len(prompts) > MAX_CHOICES:
        raise invalid("n", f"must be at most {MAX_CHOICES // len(prompts)} with {len(prompts)} prompts, got {n}.")
    if body.best_of is not None and body.best_of != n:
        raise unsupported("best_of", "other than n is not supported")
    first = GenerateRequest(
        request_id=request_id,
        model=body.model,
        prompt=prompts[0],
        sampling=sampling_params(body),
        stop=stop_params(body),
        logprobs=_logprobs(body),
        n=n,
        priority=request_priority(body),
        cache_salt=body.cache_salt,
        constraint=None if asked is None else asked.constraint,
    )
    return CompletionRequest(
        requests=tuple(replace(first, prompt=prompt) for prompt in prompts),
        spelling={
            # The runtime speaks of what a conversation is made of.
            "messages": "prompt",
            "max_tokens": max_tokens_spelling(body),
            **({} if asked is None else asked.spelling),
        },
    )


def _logprobs(body: CompletionBody) -> LogprobsParams | None:
    if body.logprobs is None:
        return None
    if not 0 <= body.logprobs <= MAX_LOGPROBS:
        raise invalid("logprobs", f"must be between 0 and {MAX_LOGPROBS}, got {body.logprobs}.")
    if body.echo:
        raise unsupported("logprobs", "of an echoed prompt are not supported")
    return LogprobsParams(body.logprobs)
