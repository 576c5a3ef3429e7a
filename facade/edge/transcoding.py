"""The services of the edge as JSON over HTTP, straight from their descriptors: ``POST /package.Service/Method``.

A body is a request in protobuf's JSON mapping (https://protobuf.dev/programming-guides/json/). A unary answer is one
JSON object; the messages of a server stream are server-sent events, and a failure in the middle is an event of the
type ``error``. Methods that read a stream need gRPC.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from aiohttp import web
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from facade.answer import encode_json
from facade.body import read_json_body
from facade.deadline import HEADER, timeout_s
from facade.edge.server import Served
from facade.edge.transcoded import TranscodedCall, as_json
from facade.errors import error_object, public_error
from facade.exchange import EXCHANGE
from facade.services import SERVICES
from facade.sse import EventStream
from mantler.errors import ErrorCode, MantlerError

_UNKNOWN = re.compile(r'has no field named "([^"]{1,100})"')
_PLACE = re.compile(r' at "?[A-Z]\w*((?:\.\w{1,100}(?:\[\d+\])?){0,20})')
_FAILED = re.compile(r"Failed to parse (\w{1,100}) field")


def routes(served: Served) -> Iterator[web.RouteDef]:
    """One for each method that does not read a stream."""
    for method in served.descriptor.methods:
        if not method.client_streaming:
            path = f"/{served.descriptor.full_name}/{method.name}"
            yield web.post(path, _handler(method, served.servicer))


def _handler(method: MethodDescriptor, servicer: Any) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    answer = getattr(servicer, method.name)
    kind = message_factory.GetMessageClass(method.input_type)

    async def handle(request: web.Request) -> web.StreamResponse:
        settings = request.app[SERVICES].settings
        async with EventStream(request, settings.ping_interval_s) as stream:
            call = TranscodedCall(request, stream, timeout_s(request.headers.get(HEADER)))
            # Nobody makes this process read and parse a long body who has not shown a key.
            await servicer.authenticate(call)
            message = _parsed(await read_json_body(request, settings.max_body_mb * 2**20), kind)
            if not method.server_streaming:
                return web.Response(body=as_json(await answer(message, call)) + b"\n", content_type="application/json")
            return await _streamed(answer(message, call), request, stream)

    return handle


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


def _parsed(body: bytes, kind: type[Message]) -> Message:
    """The request. Raises INVALID_REQUEST, naming the field where that is what is wrong."""
    message = kind()
    try:
        if body.lstrip()[:1] != b"{":
            raise json_format.ParseError("no object")
        json_format.Parse(body, message)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        field = _field(str(error))
        wrong = f"{field}: is not a field, or its value is not one," if field else "The body is not the JSON object"
        raise MantlerError(
            ErrorCode.INVALID_REQUEST,
            f"{wrong} of a {kind.DESCRIPTOR.full_name} in protobuf's JSON mapping.",
            param=field,
        ) from error
    return message


def _field(problem: str) -> str | None:
    """The field that protobuf's error is about, as ``chat.messages[0].role``, as far as it says that."""
    place = _PLACE.search(problem)
    path = place[1].removeprefix(".") if place else ""
    names = _UNKNOWN.findall(problem) or _FAILED.findall(problem)
    if not path:
        return ".".join(names) or None
    known = re.split(r"\W+", path)
    if names and names[-1] not in known:
        return f"{path}.{names[-1]}"
    return path
