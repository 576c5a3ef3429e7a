"""``POST /v1/completions``."""

from __future__ import annotations

import time

from aiohttp import web

from facade.completion_body import parse_completion_body, read_completion
from facade.completion_reply import CompletionReply
from facade.exchange import Exchange
from facade.generation import Asked, answer_generation


async def completions(request: web.Request) -> web.StreamResponse:
    """How texts go on, whole or as a stream of server-sent events."""
    return await answer_generation(request, _asked)


def _asked(raw: bytes, exchange: Exchange) -> Asked:
    body = parse_completion_body(raw)
    exchange.model = body.model
    read = read_completion(body, exchange.request_id)
    reply = CompletionReply(
        int(time.time()),
        choices=len(read.requests) * read.requests[0].n,
        top_logprobs=body.logprobs,
        include_usage=body.include_usage,
    )
    return Asked(read.requests, reply, stream=bool(body.stream), spelling=read.spelling, echo=bool(body.echo))
