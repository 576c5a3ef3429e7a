"""One call at the edge, for servicers that answer gRPC and JSON over HTTP alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import grpc

from facade.edge.transcoded import TranscodedCall
from facade.errors import public_error
from facade.exchange import CLIENT_GONE, Exchange, request_id
from mantler.errors import ErrorCode
from mantler.grpc_errors import abort

Context = grpc.aio.ServicerContext[Any, Any] | TranscodedCall


def metadata(context: Context, name: str) -> str | None:
    """The first value of the metadata or header ``name``, in lower case."""
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return str(value)
    return None


@asynccontextmanager
async def exchanged(context: Context, method: str) -> AsyncIterator[Exchange]:
    """The exchange of a call, which ends as a line of the log. Whatever leaves the body becomes the call's status.

    What REST says in headers, the request's name and the limits of the key, comes as trailing metadata.

    Args:
        method: ``/package.Service/Method``.
    """
    if isinstance(context, TranscodedCall):
        # HTTP's own middleware logs and translates.
        yield context.exchange
        return
    exchange = Exchange(request_id(metadata(context, "x-request-id") or ""), "gRPC", method)
    status: int = CLIENT_GONE
    try:
        yield exchange
        context.set_trailing_metadata(_trailers(exchange))
        status = HTTPStatus.OK
    except asyncio.CancelledError:
        if context.time_remaining() == 0:
            # gRPC has told the client.
            exchange.error, status = ErrorCode.DEADLINE_EXCEEDED, HTTPStatus.GATEWAY_TIMEOUT
        raise
    except Exception as error:
        known = public_error(error, exchange.request_id)
        exchange.error, status = known.code, known.row.http_status
        await abort(context, known, _trailers(exchange))
    finally:
        exchange.log(status)


def _trailers(exchange: Exchange) -> tuple[tuple[str, str], ...]:
    return ("x-request-id", exchange.request_id), *exchange.headers.items()
