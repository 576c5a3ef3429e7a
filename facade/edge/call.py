"""One call at the edge, for servicers that answer gRPC and JSON over HTTP alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import grpc

from facade.edge.transcoded import TranscodedCall
from facade.exchange import CLIENT_GONE, Exchange, request_id
from mantler.errors import ErrorCode, MantlerError
from mantler.grpc_errors import border

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
        async with border(context, f"{method} {exchange.request_id}"):
            try:
                yield exchange
                status = HTTPStatus.OK
            except Exception as error:
                exchange.error = error.code if isinstance(error, MantlerError) else ErrorCode.INTERNAL_ERROR
                status = MantlerError(exchange.error, "").row.http_status
                raise
    finally:
        exchange.log(status)
