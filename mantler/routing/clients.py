"""Connections to machines, one for each address."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from mantler.client import RuntimeClient
from mantler.security.transport import Security


class Clients:
    """Opens connections when they are needed first, and closes all of them in the end. Use as a context manager."""

    def __init__(self, security: Security | None = None) -> None:
        self._security = security
        self._clients: dict[str, RuntimeClient] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        clients, self._clients = self._clients, {}
        await asyncio.gather(*(client.close() for client in clients.values()))

    def at(self, address: str) -> RuntimeClient:
        """The connection to ``address``. Raises ``SecurityError`` where the security does not allow it."""
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = RuntimeClient(address, self._security, relays=True)
        return client

    async def forget(self, address: str) -> None:
        """Closes the connection to a machine that does not come back there."""
        client = self._clients.pop(address, None)
        if client is not None:
            await client.close()
