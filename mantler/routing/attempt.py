"""One call of one machine, which can be given up from outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from mantler.client import GivenUp, RuntimeClient
from mantler.mesh.machine import MachineId
from mantler.messages import Event, GenerateRequest

SILENT_S = 1.0
"""A call that has brought something within this time is not given up, whatever is known of its machine."""


class Attempts:
    """The calls that run, by their machines. Lives on the event loop."""

    def __init__(self) -> None:
        self._running: dict[MachineId, set[_Attempt]] = {}

    async def generate(
        self, machine_id: MachineId, client: RuntimeClient, request: GenerateRequest, timeout_s: float
    ) -> AsyncGenerator[Event, None]:
        """As :meth:`RuntimeClient.generate`, which raises MACHINE_OFFLINE too where the call is given up."""
        attempt = _Attempt()
        running = self._running.setdefault(machine_id, set())
        running.add(attempt)
        try:
            async with aclosing(client.generate(request, timeout_s, attempt.given_up)) as events:
                async for event in events:
                    attempt.heard_s = attempt.now()
                    attempt.answered = True
                    yield event
        finally:
            attempt.keep()
            running.discard(attempt)
            if not running:
                self._running.pop(machine_id, None)

    def heard_within(self, seconds: float) -> list[MachineId]:
        """The machines whose calls brought something in the last so many seconds."""
        since_s = asyncio.get_running_loop().time() - seconds
        return [
            machine_id
            for machine_id, running in self._running.items()
            if any(attempt.heard_s >= since_s and attempt.answered for attempt in running)
        ]

    def give_up(self, machine_id: MachineId) -> None:
        """The machine is offline: its calls end, those that still bring something once they fall silent."""
        for attempt in self._running.get(machine_id, ()):
            attempt.give_up_if_silent()

    def keep(self, machine_id: MachineId) -> None:
        """The machine is back."""
        for attempt in self._running.get(machine_id, ()):
            attempt.keep()


class _Attempt:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self.heard_s = self.now()
        self.answered = False
        self.given_up = GivenUp()
        self._timer: asyncio.TimerHandle | None = None

    def give_up_if_silent(self) -> None:
        rest_s = self.heard_s + SILENT_S - self.now()
        if rest_s <= 0:
            self.given_up.give_up()
        else:
            self._timer = self._loop.call_later(rest_s, self.give_up_if_silent)

    def keep(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
