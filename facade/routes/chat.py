"""``POST /v1/chat/completions``.

A request goes: key, a place among the open ones, body, model access, rate limit, runtime. The runtime's work is
cancelled on every way out: leaving the event iterator cancels the gRPC call.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from aiohttp import web

from facade.answer import encode_json, json_answer
from facade.auth import authenticate, require_model
from facade.body import read_json_body
from facade.cache_salt import cache_salt
from facade.errors import error_object, public_error
from facade.exchange import EXCHANGE, Exchange
from facade.limits import Reservation, reserve
from facade.render import ChunkRenderer, completion_id, completion_object
from facade.schema import ChatBody, parse_chat_body, to_generate_request
from facade.served import not_found
from facade.services import SERVICES
from facade.sse import DONE, EventStream
from mantler.errors import ErrorCode, MantlerError
from mantler.messages import Delta, Event, Started, Usage
from mantler.tenancy.store import KeyRecord


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """One completion, whole or as a stream of server-sent events."""
    services = request.app[SERVICES]
    exchange = request[EXCHANGE]
    key = await authenticate(request)
    async with EventStream(request, services.settings.ping_interval_s) as stream:
        try:
            async with services.admission.admit():
                response = await _complete(request, key, stream)
            # The runtime is done, and so is the place: what is left is between the client and its connection.
            if stream.is_open:
                await stream.finish(DONE)
            return response
        except ConnectionError:
            raise
        except Exception as error:
            if not stream.is_open:
                raise
            # The status is spent: the failure is the last event, and nothing says that all went well.
            known = public_error(error, exchange.request_id)
            exchange.error = known.code
            await stream.finish(encode_json(error_object(known)))
            return stream.response


async def _complete(request: web.Request, key: KeyRecord, stream: EventStream) -> web.StreamResponse:
    services = request.app[SERVICES]
    exchange = request[EXCHANGE]
    settings = services.settings
    body = parse_chat_body(await read_json_body(request, settings.max_body_mb * 2**20))
    exchange.model = body.model
    asked = to_generate_request(body, exchange.request_id)
    wanted = replace(asked, cache_salt=cache_salt(key, asked.cache_salt))
    require_model(key, body.model)
    with reserve(services.limiter, key, exchange) as reservation:
        try:
            async with aclosing(services.client.generate(wanted, settings.request_timeout_s)) as events:
                if body.stream:
                    return await _relay(events, body, stream, exchange, reservation)
                return await _collect(events, exchange, reservation)
        except MantlerError as error:
            if error.code is not ErrorCode.MODEL_NOT_FOUND:
                raise
            raise await not_found(services.client, key, body.model) from error


async def _relay(
    events: AsyncIterator[Event], body: ChatBody, stream: EventStream, exchange: Exchange, reservation: Reservation
) -> web.StreamResponse:
    """Sends events on as chunks. The first event decides: until it came, a failure is an HTTP status."""
    stream.watch_silence()
    renderer: ChunkRenderer | None = None
    usage: Usage | None = None
    async for event in events:
        part = event.body
        if isinstance(part, Started):
            _note_start(part, exchange, reservation)
            renderer = renderer or ChunkRenderer(
                completion_id(), int(time.time()), part, include_usage=body.include_usage
            )
            await stream.open()
            await stream.send(renderer.role(event.index))
        elif renderer is None:
            raise ValueError("a choice has to start before it goes on")
        elif isinstance(part, Delta):
            exchange.count_tokens(len(part.token_ids))
            if part.text:
                await stream.send(renderer.content(event.index, part.text))
        else:
            usage = part.usage
            exchange.completion_tokens = usage.completion_tokens
            await stream.send(renderer.finish(event.index, part.reason))
    if renderer is not None and usage is not None and body.include_usage:
        await stream.send(renderer.usage(usage))
    return stream.response


async def _collect(events: AsyncIterator[Event], exchange: Exchange, reservation: Reservation) -> web.Response:
    """Puts events together to one answer."""
    started: Started | None = None
    texts: list[str] = []
    async for event in events:
        part = event.body
        if isinstance(part, Started):
            _note_start(part, exchange, reservation)
            started = part
        elif isinstance(part, Delta):
            exchange.count_tokens(len(part.token_ids))
            texts.append(part.text)
        elif started is not None:
            exchange.completion_tokens = part.usage.completion_tokens
            return json_answer(completion_object(completion_id(), int(time.time()), started, "".join(texts), part))
    raise ValueError("the stream ended before the choice")


def _note_start(started: Started, exchange: Exchange, reservation: Reservation) -> None:
    exchange.prompt_tokens = started.prompt_tokens
    reservation.settle()
