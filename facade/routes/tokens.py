"""``POST /v1/tokenize`` and ``POST /v1/detokenize``: what a model reads, in the shapes that vLLM gave them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import hdrs, web

from facade.answer import json_answer
from facade.body import read_json_body
from facade.caller import Caller, admitted
from facade.deadline import HEADER as DEADLINE
from facade.deadline import timeout_s
from facade.prompts import read_token_ids
from facade.spelling import spelled_as
from facade.token_bodies import (
    DetokenizeBody,
    TokenizeBody,
    parse_detokenize_body,
    parse_tokenize_body,
    prompt_to_count,
)
from facade.web_state import EXCHANGE, SERVICES

_Body = TypeVar("_Body", TokenizeBody, DetokenizeBody)


async def tokenize(request: web.Request) -> web.Response:
    """The tokens of a text, or of a conversation as the model's chat template writes it."""
    return await _answer(request, parse_tokenize_body, _tokenize)


async def detokenize(request: web.Request) -> web.Response:
    """The text of tokens, control tokens included."""
    return await _answer(request, parse_detokenize_body, _detokenize)


async def _answer(
    request: web.Request,
    parse: Callable[[bytes], _Body],
    ask: Callable[[Caller, _Body], Awaitable[dict[str, Any]]],
) -> web.Response:
    """Goes the way of a generation: key, a place, body, model access, rate limit, runtime."""
    services = request.app[SERVICES]
    asked_s = timeout_s(request.headers.get(DEADLINE))
    async with admitted(services, request[EXCHANGE], request.headers.get(hdrs.AUTHORIZATION), asked_s) as caller:
        body = parse(await read_json_body(request, services.settings.max_body_mb * 2**20))
        async with caller.using(body.model) as reservation:
            answer = await ask(caller, body)
            reservation.settle()
    return json_answer(answer)


async def _tokenize(caller: Caller, body: TokenizeBody) -> dict[str, Any]:
    prompt = prompt_to_count(body)
    with spelled_as("messages", "messages" if body.prompt is None else "prompt"):
        counted = await caller.services.client.count_tokens(
            body.model,
            prompt,
            include_token_ids=True,
            timeout_s=caller.remaining_s,
            allowed=caller.key.machines,
        )
    return {"count": counted.tokens, "max_model_len": counted.context_length, "tokens": counted.token_ids}


async def _detokenize(caller: Caller, body: DetokenizeBody) -> dict[str, Any]:
    tokens = read_token_ids("tokens", body.tokens)
    text = await caller.services.client.detokenize(
        body.model, tokens, timeout_s=caller.remaining_s, allowed=caller.key.machines
    )
    return {"prompt": text}
