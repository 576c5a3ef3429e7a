"""A call that came as JSON over HTTP, with the methods of ``grpc.aio.ServicerContext`` that our servicers use."""

from __future__ import annotations

import time
from collections.abc import Iterable

import grpc
from aiohttp import web
from google.protobuf.message import Message

from facade.edge.json_message import as_json
from facade.exchange import EXCHANGE, Exchange
from facade.sse import EventStream
from mantler.grpc_errors import from_trailers


class TranscodedCall:
    """Stands for the context of a gRPC call.

    Args:
        stream: where the messages of a server stream go.
        limit_s: what the client gives the call; ``None`` sets no limit.
    """

    def __init__(self, request: web.Request, stream: EventStream, limit_s: float | None) -> None:
        self._request = request
        self._stream = stream
        self._deadline_s = None if limit_s is None else time.monotonic() + limit_s

    @property
    def exchange(self) -> Exchange:
        """The HTTP request's."""
        return self._request[EXCHANGE]

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers."""
        return tuple((name.lower(), value) for name, value in self._request.headers.items())

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    async def write(self, message: Message) -> None:
        """The next message of a server stream, as an event."""
        await self._stream.open()
        await self._stream.send(as_json(message))

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> None:
        """Ends the call. Always raises, the ``MantlerError`` that the status was made from."""
        raise from_trailers(code, trailing_metadata)
