"""Doors to machines that cannot be dialled: each is a Unix socket here whose connections come out at the machine.

Whoever has the address of a door connects to it as to any other machine. For every connection the machine is asked to
call ``MeshService.Tunnel``, and the two are joined.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from mantler.errors import ErrorCode, MantlerError
from mantler.mesh.machine import MachineId

CHUNK_BYTES = 64 * 1024
OPEN_S = 5.0
"""How long a machine may take to open a tunnel."""
MAX_DOORS = 1000
KEPT_S = 60.0
"""How long the door of a machine that is lost stays, for it may come again."""

Ask = Callable[[str], Awaitable[None]]
"""Asks a machine to open the tunnel of this name."""

Send = Callable[[bytes], Awaitable[None]]

_log = logging.getLogger("facade.tunnels")


class Tunnels:
    """The doors of all machines, and the tunnels that were asked for. Use as a context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mantler-")
        self._doors: dict[MachineId, _Door] = {}
        self._wanted: dict[str, _Wanted] = {}
        self._count = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for door in self._doors.values():
            if door.closing is not None:
                door.closing.cancel()
            door.server.close()
        self._folder.cleanup()

    async def open(self, machine_id: MachineId, ask: Ask) -> str:
        """The address of the machine's door, which is the same one whenever the machine comes back.

        Raises RUNTIME_UNAVAILABLE where there are too many.
        """
        door = self._doors.get(machine_id)
        if door is None:
            if len(self._doors) >= MAX_DOORS:
                raise MantlerError(
                    ErrorCode.RUNTIME_UNAVAILABLE,
                    f"The facade has {MAX_DOORS} machines behind tunnels, which is the most that it takes.",
                    retry_after_s=5.0,
                )
            self._count += 1
            path = f"{self._folder.name}/{self._count}"
            door = self._doors[machine_id] = _Door(f"unix:{path}", ask)
            door.server = await asyncio.start_unix_server(lambda *ends: self._enter(door, *ends), path)
        door.ask = ask
        if door.closing is not None:
            door.closing.cancel()
        return door.address

    def lose(self, machine_id: MachineId, ask: Ask, *, for_good: bool) -> None:
        """The connection that asked the machine is gone; tunnels that are open stay so."""
        door = self._doors.get(machine_id)
        if door is not None and door.ask is ask:
            door.ask = None
            door.closing = asyncio.get_running_loop().call_later(0 if for_good else KEPT_S, self._close, machine_id)

    def _close(self, machine_id: MachineId) -> None:
        self._doors.pop(machine_id).server.close()

    async def carry(
        self, tunnel_id: str, incoming: AsyncIterator[bytes], send: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Joins the machine's end of a tunnel with the connection that waits for it, until either ends.

        Raises INVALID_TOKEN where nobody asked for the tunnel.
        """
        wanted = self._wanted.pop(tunnel_id, None)
        if wanted is None:
            raise MantlerError(ErrorCode.INVALID_TOKEN, "tunnel_id: nobody waits for this tunnel.", param="tunnel_id")
        wanted.opened.set()
        sending = asyncio.create_task(_send(wanted.reader, send))
        try:
            receiving = asyncio.create_task(_receive(incoming, wanted.writer))
            try:
                await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                receiving.cancel()
        finally:
            sending.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
            wanted.closed.set()

    async def _enter(self, door: _Door, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tunnel_id = secrets.token_urlsafe(24)
        wanted = self._wanted[tunnel_id] = _Wanted(reader, writer)
        with contextlib.closing(writer):
            try:
                async with asyncio.timeout(OPEN_S):
                    if door.ask is None:
                        return
                    await door.ask(tunnel_id)
                    await wanted.opened.wait()
            except TimeoutError:
                _log.warning("a machine has not opened the tunnel that it was asked for")
                return
            finally:
                self._wanted.pop(tunnel_id, None)
            await wanted.closed.wait()


@dataclass(slots=True)
class _Door:
    address: str
    ask: Ask | None
    server: asyncio.Server = field(init=False)
    closing: asyncio.TimerHandle | None = None
    """Where the machine is lost."""


@dataclass(slots=True)
class _Wanted:
    """A connection that waits for its tunnel."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)


async def _send(reader: asyncio.StreamReader, send: Send) -> None:
    while data := await reader.read(CHUNK_BYTES):
        await send(data)


async def _receive(incoming: AsyncIterator[bytes], writer: asyncio.StreamWriter) -> None:
    async for data in incoming:
        writer.write(data)
        await writer.drain()
