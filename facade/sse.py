"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

from aiohttp import web

from facade.web_state import EXCHANGE

DONE = b"[DONE]"
"""What OpenAI's streams end with when all went well."""
CLOSE_TIMEOUT_S = 5.0
"""How long the last bytes may wait for a reader that takes none."""

_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_PING = b": ping\n\n"
_log = logging.getLogger("facade")


class EventStream:
    """One response of events. Comments fill silences, so that nothing in between gives up on it.

    The status can still become an error until :meth:`open`, or until the first silence has lasted ``ping_interval_s``.
    A reader that does not keep up holds the writer back: nothing is buffered beyond the socket's own bounds. Use as a
    context manager, which ends the comments.
    """

    def __init__(self, request: web.Request, ping_interval_s: float) -> None:
        self.response = web.StreamResponse(headers=_HEADERS)
        self._request = request
        self._ping_interval_s = ping_interval_s
        self._now = asyncio.get_running_loop().time
        self._last_write_s = self._now()
        self._pings: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop_pings()

    @property
    def is_open(self) -> bool:
        """Whether the headers are on their way, so that the status cannot change any more."""
        return self.response.prepared

    def watch_silence(self) -> None:
        """From now on a silence opens the stream, if it is not open, and gets comments."""
        self._last_write_s = self._now()
        self._pings = asyncio.create_task(self._ping_in_silence())

    async def open(self) -> None:
        """Sends the headers, unless they are on their way already."""
        if not self.is_open:
            await self.response.prepare(self._request)

    async def send(self, *events: bytes) -> None:
        """The data of one event or of several, which leave together. None of them holds a line break."""
        if events:
            await self._request.writer.write(b"data: " + b"\n\ndata: ".join(events) + b"\n\n")
            self._last_write_s = self._now()

    async def finish(self, last: bytes = b"", *, name: bytes = b"") -> None:
        """The last event, unless it is empty, and the end of the body.

        Cuts the connection to a reader that takes nothing any more.

        Args:
            name: makes it an event of that type.
        """
        await self._stop_pings()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                if name:
                    await self.response.write(b"event: %b\n" % name)
                if last:
                    await self.send(last)
                # Clients close at the last event, sooner than the end of the body comes.
                self._request[EXCHANGE].whole_status = self.response.status
                await self.response.write_eof()
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()

    async def _stop_pings(self) -> None:
        if self._pings is not None:
            self._pings.cancel()
            await asyncio.wait([self._pings])

    async def _ping_in_silence(self) -> None:
        try:
            while True:
                rest_s = self._last_write_s + self._ping_interval_s - self._now()
                if rest_s > 0:
                    await asyncio.sleep(rest_s)
                    continue
                await self.open()
                await self.response.write(_PING)
                self._last_write_s = self._now()
        except ConnectionError:
            _log.debug("the client left during a silence")
