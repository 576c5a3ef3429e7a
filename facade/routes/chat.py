"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time

from aiohttp import web

from facade.exchange import Exchange
from facade.generation import Asked, answer_generation
from facade.render import ChatReply
from facade.schema import client_spelling, parse_chat_body, to_generate_request


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """The next turns of a conversation, whole or as a stream of server-sent events."""
    return await answer_generation(request, _asked)


def _asked(raw: bytes, exchange: Exchange) -> Asked:
    body = parse_chat_body(raw)
    exchange.model = body.model
    request = to_generate_request(body, exchange.request_id)
    reply = ChatReply(
        int(time.time()),
        n=request.n,
        logprobs=request.logprobs is not None,
        include_usage=body.include_usage,
    )
    return Asked([request], reply, stream=bool(body.stream), spelling=client_spelling(body))
