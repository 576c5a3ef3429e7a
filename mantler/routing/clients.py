"""Connections to machines, one for each address."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from mantler.client import RuntimeClient
from mantler.security.transport import Security


@dataclass(slots=True)
class _Connection:
    client: RuntimeClient
    users: int = 0


class Clients:
    """Opens connections when they are needed first, and closes all of them in the end. Use as a context manager.

    A connection that is left alone costs descriptors, and attempts to connect again where nobody listens any more:
    whoever has clients calls :meth:`close_unused` now and then.
    """

    def __init__(self, security: Security | None = None) -> None:
        self._security = security
        self._connections: dict[str, _Connection] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close(list(self._connections))

    def __len__(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    def keep(self, address: str) -> RuntimeClient:
        """The connection to ``address``, which is kept to the end. Raises ``SecurityError`` as :meth:`using` does."""
        connection = self._at(address)
        connection.users += 1
        return connection.client

    @contextmanager
    def using(self, address: str) -> Iterator[RuntimeClient]:
        """The connection to ``address``, for calls within the context.

        Raises ``SecurityError`` where the security does not allow it.
        """
        connection = self._at(address)
        connection.users += 1
        try:
            yield connection.client
        finally:
            connection.users -= 1

    async def close_unused(self, wanted: Container[str]) -> None:
        """Closes what nobody uses now, unless its address is ``wanted``. It is opened again when it is needed again."""
        unused = [address for address, connection in self._connections.items() if not connection.users]
        await self._close([address for address in unused if address not in wanted])

    def _at(self, address: str) -> _Connection:
        connection = self._connections.get(address)
        if connection is None:
            connection = self._connections[address] = _Connection(RuntimeClient(address, self._security, relays=True))
        return connection

    async def _close(self, addresses: Sequence[str]) -> None:
        # Out of the way first, so that whoever comes meanwhile gets a new one.
        closing = [self._connections.pop(address).client for address in addresses]
        await asyncio.gather(*(client.close() for client in closing))
