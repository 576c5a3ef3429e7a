"""``POST /v1/tokenize`` and ``POST /v1/detokenize``: what a model reads, in the shapes that vLLM gave them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import hdrs, web

from facade.answer import json_answer
from facade.auth import authenticate, require_model
from facade.body import read_json_body
from facade.deadline import HEADER as DEADLINE
from facade.deadline import timeout_s
from facade.exchange import EXCHANGE
from facade.limits import reserve
from facade.prompts import read_token_ids
from facade.served import explaining
from facade.services import SERVICES
from facade.spelling import spelled_as
from facade.token_bodies import (
    DetokenizeBody,
    TokenizeBody,
    parse_detokenize_body,
    parse_tokenize_body,
    prompt_to_count,
)
from mantler.mesh.machine import MachineId
from mantler.routing.client import MeshClient

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
    ask: Callable[[MeshClient, _Body, float, frozenset[MachineId] | None], Awaitable[dict[str, Any]]],
) -> web.Response:
    """Goes the way of a generation: key, a place, body, model access, rate limit, runtime."""
    services = request.app[SERVICES]
    settings = services.settings
    exchange = request[EXCHANGE]
    key = await authenticate(services.keys, request.headers.get(hdrs.AUTHORIZATION), exchange)
    limit_s = services.limit_s(timeout_s(request.headers.get(DEADLINE)))
    async with services.admission.admit(limit_s):
        body = parse(await read_json_body(request, settings.max_body_mb * 2**20))
        exchange.model = body.model
        require_model(key, body.model)
        with reserve(services.limiters, key, exchange) as reservation:
            async with explaining(services.client, key, body.model):
                answer = await ask(services.client, body, limit_s, key.machines)
            reservation.settle()
    return json_answer(answer)


async def _tokenize(
    client: MeshClient, body: TokenizeBody, limit_s: float, allowed: frozenset[MachineId] | None
) -> dict[str, Any]:
    prompt = prompt_to_count(body)
    with spelled_as("messages", "messages" if body.prompt is None else "prompt"):
        counted = await client.count_tokens(
            body.model, prompt, include_token_ids=True, timeout_s=limit_s, allowed=allowed
        )
    return {"count": counted.tokens, "max_model_len": counted.context_length, "tokens": counted.token_ids}


async def _detokenize(
    client: MeshClient, body: DetokenizeBody, limit_s: float, allowed: frozenset[MachineId] | None
) -> dict[str, Any]:
    tokens = read_token_ids("tokens", body.tokens)
    return {"prompt": await client.detokenize(body.model, tokens, timeout_s=limit_s, allowed=allowed)}
