"""The services of the edge as JSON over HTTP, straight from their descriptors: ``POST /package.Service/Method``.

A body is a request in protobuf's JSON mapping (:mod:`facade.edge.json_message`). A unary answer is one JSON object; the
messages of a server stream are server-sent events, and a failure in the middle is an event of the type ``error``.
Methods that read a stream need gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from aiohttp import web
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from facade.answer import encode_json
from facade.body import read_json_body
from facade.deadline import HEADER, timeout_s
from facade.edge.json_message import MAX_BYTES, MessageReader, as_json
from facade.edge.server import Served
from facade.edge.transcoded import TranscodedCall
from facade.errors import error_object, public_error
from facade.exchange import EXCHANGE
from facade.services import SERVICES
from facade.sse import EventStream


def routes(served: Served, reader: MessageReader) -> Iterator[web.RouteDef]:
    """One for each method that does not read a stream."""
    for method in served.descriptor.methods:
        if not method.client_streaming:
            path = f"/{served.descriptor.full_name}/{method.name}"
            yield web.post(path, _handler(method, served.servicer, reader))


def _handler(
    method: MethodDescriptor, servicer: Any, reader: MessageReader
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    answer = getattr(servicer, method.name)
    kind = message_factory.GetMessageClass(method.input_type)

    async def handle(request: web.Request) -> web.StreamResponse:
        async with EventStream(request, request.app[SERVICES].settings.ping_interval_s) as stream:
            call = TranscodedCall(request, stream, timeout_s(request.headers.get(HEADER)))
            # Nobody makes this process read and parse a long body who has not shown a key.
            await servicer.authenticate(call)
            message = await _message(request, call, kind, reader)
            if not method.server_streaming:
                return web.Response(body=as_json(await answer(message, call)) + b"\n", content_type="application/json")
            return await _streamed(answer(message, call), request, stream)

    return handle


async def _message(request: web.Request, call: TranscodedCall, kind: type[Message], reader: MessageReader) -> Message:
    """The request's message. Until it is there, its client has a place and a deadline like others."""
    services = request.app[SERVICES]
    deadline_s = asyncio.get_running_loop().time() + services.limit_s(call.time_remaining())
    async with services.admission.admit(deadline_s):
        body = await read_json_body(request, min(MAX_BYTES, services.settings.max_body_mb * 2**20))
        return await reader.read(body, kind)


async def _streamed(answer: Awaitable[None], request: web.Request, stream: EventStream) -> web.StreamResponse:
    try:
        stream.watch_silence()
        await answer
        await stream.open()
        await stream.finish()
    except ConnectionError:
        raise
    except Exception as error:
        if not stream.is_open:
            raise
        exchange = request[EXCHANGE]
        known = public_error(error, exchange.request_id)
        exchange.error = known.code
        await stream.finish(encode_json(error_object(known)), name=b"error")
    return stream.response
