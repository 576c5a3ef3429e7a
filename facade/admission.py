"""How many generations may be open, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from mantler.errors import ErrorCode, MantlerError

RETRY_AFTER_S = 1.0


class Admission:
    """A bound on open generations, each with a deadline.

    Args:
        limit: generations that may be open at once. One more is refused, not queued.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[asyncio.Timeout] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._closing = False

    @property
    def open(self) -> int:
        """Generations that are open now."""
        return len(self._open)

    @contextlib.asynccontextmanager
    async def admit(self, deadline_s: float) -> AsyncIterator[None]:
        """Holds one place while the body runs, until ``deadline_s`` of the event loop's clock at most.

        Raises RUNTIME_UNAVAILABLE without a place or when the body outlasts :meth:`drain`, and DEADLINE_EXCEEDED
        when it outlasts its time.
        """
        if self._closing:
            raise _shutting_down()
        if len(self._open) >= self._limit:
            raise MantlerError(
                ErrorCode.RUNTIME_UNAVAILABLE,
                "The server has as many open requests as it takes.",
                retry_after_s=RETRY_AFTER_S,
            )
        scope = asyncio.timeout_at(deadline_s)
        try:
            async with scope:
                self._open.add(scope)
                self._empty.clear()
                try:
                    yield
                finally:
                    self._open.discard(scope)
                    if not self._open:
                        self._empty.set()
        except TimeoutError:
            if not scope.expired():
                raise
            if self._closing:
                raise _shutting_down() from None
            raise MantlerError(ErrorCode.DEADLINE_EXCEEDED, "The request passed its deadline.") from None

    async def drain(self, timeout_s: float) -> None:
        """Admits nobody any more and returns when all are done; those left after ``timeout_s`` are ended."""
        self._closing = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            now = asyncio.get_running_loop().time()
            for scope in self._open:
                if not scope.expired():
                    scope.reschedule(now)
            await self._empty.wait()


def _shutting_down() -> MantlerError:
    return MantlerError(ErrorCode.RUNTIME_UNAVAILABLE, "The server is shutting down.", retry_after_s=RETRY_AFTER_S)
