"""The calls of each machine, which can be given up from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mantler.client import CallWatch
from mantler.mesh.machine import MachineId

SILENT_S = 1.0
"""A call that has brought something within this time is not given up, whatever is known of its machine."""


class Attempts:
    """The calls that run, by their machines. Lives on the event loop."""

    def __init__(self) -> None:
        self._running: dict[MachineId, set[_Attempt]] = {}

    @contextmanager
    def running(self, machine_id: MachineId) -> Iterator[CallWatch]:
        """For as long as one call of the machine runs: what sees it and may end it."""
        attempt = _Attempt()
        running = self._running.setdefault(machine_id, set())
        running.add(attempt)
        try:
            yield attempt.watch
        finally:
            attempt.keep()
            running.discard(attempt)
            if not running:
                self._running.pop(machine_id, None)

    def heard_within(self, seconds: float) -> list[MachineId]:
        """The machines whose calls brought something in the last so many seconds."""
        since_s = time.monotonic() - seconds
        return [
            machine_id
            for machine_id, running in self._running.items()
            if any(attempt.watch.heard_s >= since_s for attempt in running)
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
        self.watch = CallWatch()
        self._began_s = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def give_up_if_silent(self) -> None:
        rest_s = max(self.watch.heard_s, self._began_s) + SILENT_S - time.monotonic()
        if rest_s <= 0:
            self.watch.give_up()
        else:
            self._timer = asyncio.get_running_loop().call_later(rest_s, self.give_up_if_silent)

    def keep(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
