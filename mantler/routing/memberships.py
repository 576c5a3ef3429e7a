"""Several sources of machines at once, which feed one view."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Protocol


class Membership(Protocol):
    """Whatever tells a view of machines."""

    async def start(self) -> None:
        """Begins; returns once the machines that answer at once are known."""
        ...

    async def refresh(self) -> None:
        """Looks again, now, where that helps."""
        ...

    async def close(self) -> None:
        """Ends."""
        ...


class Memberships:
    """All of ``members`` as one."""

    def __init__(self, members: Sequence[Membership]) -> None:
        self._members = members
        self._started = AsyncExitStack()

    async def start(self) -> None:
        """See :class:`Membership`."""
        for member in self._members:
            self._started.push_async_callback(member.close)
            await member.start()

    async def refresh(self) -> None:
        """See :class:`Membership`."""
        await asyncio.gather(*(member.refresh() for member in self._members))

    async def close(self) -> None:
        """See :class:`Membership`."""
        await self._started.aclose()
