"""A membership of fixed addresses: each machine is asked in turns what it serves, and is gone while it is silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from mantler.client import RuntimeClient
from mantler.errors import ErrorCode, MantlerError
from mantler.mesh.machine import LoadReport
from mantler.messages import MachineInfo
from mantler.routing.clients import Clients
from mantler.routing.view import View

POLL_S = 0.5
POLL_TIMEOUT_S = 1.0
LEASE_S = 2.5
"""A machine that has not answered for so long is offline."""


class StaticMembership:
    """Asks the machines at ``addresses``."""

    def __init__(self, addresses: Sequence[str], view: View, clients: Clients) -> None:
        self._machines = [_Polled(address, view, clients) for address in addresses]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Asks everybody once, and goes on in the background."""
        await self.refresh()
        self._tasks = [asyncio.create_task(machine.run()) for machine in self._machines]

    async def refresh(self) -> None:
        """Asks everybody again."""
        await asyncio.gather(*(machine.ask() for machine in self._machines))

    async def close(self) -> None:
        """Stops asking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Polled:
    """One address."""

    def __init__(self, address: str, view: View, clients: Clients) -> None:
        self._address = address
        self._view = view
        self._client: RuntimeClient = clients.keep(address)
        self._machine: MachineInfo | None = None
        """Who answered there last."""
        self._began_s = float("-inf")
        """When the last question was asked."""
        self._asking = asyncio.Lock()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            await self.ask()

    async def ask(self) -> None:
        """Returns with what the machine says from now on. Those who ask at the same time share a question."""
        now_s = time.monotonic()
        async with self._asking:
            if self._began_s >= now_s:
                return
            self._began_s = time.monotonic()
            try:
                machine, report = await self._client.get_machine(POLL_TIMEOUT_S)
            except MantlerError as error:
                self._failed(error)
            else:
                self._answered(machine, report)

    def _answered(self, machine: MachineInfo, report: LoadReport) -> None:
        self._machine = machine
        now_s = time.monotonic()
        lease_until_s = now_s + LEASE_S
        self._view.registered(machine, self._address, now_s=now_s, lease_until_s=lease_until_s)
        self._view.reported(report, now_s=now_s, lease_until_s=lease_until_s)

    def _failed(self, error: MantlerError) -> None:
        # A deadline may be a busy machine: its lease decides. A refused connection is certain.
        if error.code is not ErrorCode.DEADLINE_EXCEEDED and self._machine is not None:
            self._view.left(self._machine, now_s=time.monotonic())
            self._machine = None
