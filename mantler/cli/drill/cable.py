"""The way to a machine, which can be cut without a word to either end."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from mantler.config import join_address, split_address

_CHUNK_BYTES = 64 * 1024
_DIAL_S = 5.0


class Cable:
    """Carries connections to ``address``. Use as a context manager.

    While it is cut, nothing comes through and no connection ends: each side sees the other one fall silent, as behind a
    switch without power. What was on its way arrives when the cable is mended.

    Attributes:
        address: where this end is, ``HOST:PORT``.
    """

    def __init__(self, address: str) -> None:
        self._far = address
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.address = join_address(*self._server.sockets[0].getsockname()[:2])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """From now on nothing comes through."""
        self._whole.clear()

    def mend(self) -> None:
        """Everything comes through again."""
        self._whole.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("a connection is served in a task")
        self._tasks.add(task)
        try:
            with contextlib.closing(writer), contextlib.suppress(OSError, TimeoutError):
                await self._whole.wait()
                async with asyncio.timeout(_DIAL_S):
                    far_reader, far_writer = await asyncio.open_connection(*split_address(self._far))
                with contextlib.closing(far_writer):
                    async with asyncio.TaskGroup() as group:
                        ways = [
                            group.create_task(self._pass_on(reader, far_writer)),
                            group.create_task(self._pass_on(far_reader, writer)),
                        ]
                        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                        for way in ways:
                            way.cancel()
        finally:
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
