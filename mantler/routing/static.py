"""A membership of fixed addresses: each machine is asked in turns what it serves, and is gone while it is silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from mantler.client import RuntimeClient
from mantler.errors import ErrorCode, MantlerError
from mantler.mesh.machine import MachineId
from mantler.mesh.membership import Version
from mantler.messages import ModelInfo, ModelState
from mantler.routing.clients import Clients
from mantler.routing.view import View

POLL_S = 0.5
POLL_TIMEOUT_S = 1.0
LEASE_S = 2.5
"""A machine that has not answered for so long is offline."""

_Facts = tuple[tuple[str, ModelState, int, int, int], ...]


class StaticMembership:
    """Asks the machines at ``addresses``, whose ids are their addresses. Use as a context manager."""

    def __init__(self, addresses: Sequence[str], view: View, clients: Clients) -> None:
        self._machines = [_Polled(MachineId(address), view, clients) for address in addresses]
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
    """One machine. A life of its runtime is told from the next by a silence in between."""

    def __init__(self, machine_id: MachineId, view: View, clients: Clients) -> None:
        self._id = machine_id
        self._view = view
        self._client: RuntimeClient = clients.at(machine_id)
        self._version = Version(0, 0)
        self._facts: _Facts | None = None
        self._asked = 0
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
                models = await self._client.list_models(POLL_TIMEOUT_S)
            except MantlerError as error:
                self._failed(error)
            else:
                self._answered(models)

    def _answered(self, models: Sequence[ModelInfo]) -> None:
        now_s = time.monotonic()
        self._asked += 1
        facts = tuple(
            (
                model.id,
                model.state,
                model.deployment.slots if model.deployment else 0,
                model.deployment.queue_capacity if model.deployment else 0,
                model.deployment.max_request_tokens if model.deployment else 0,
            )
            for model in models
        )
        lease_until_s = now_s + LEASE_S
        if facts != self._facts:
            self._facts = facts
            self._version = Version(self._version.epoch, self._version.revision + 1)
            self._view.registered(self._id, self._id, models, self._version, now_s=now_s, lease_until_s=lease_until_s)
        self._view.renewed(
            self._id,
            models,
            self._version.epoch,
            now_s=now_s,
            lease_until_s=lease_until_s,
            sequence=self._asked,
        )

    def _failed(self, error: MantlerError) -> None:
        # A deadline may be a busy machine: its lease decides. A refused connection is certain.
        if error.code is not ErrorCode.DEADLINE_EXCEEDED and self._facts is not None:
            self._view.left(self._id, self._version, now_s=time.monotonic())
            self._version = Version(self._version.epoch + 1, 0)
            self._facts = None
