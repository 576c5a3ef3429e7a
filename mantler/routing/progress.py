"""How one request is getting on, over all the machines that were tried for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mantler.errors import MantlerError
from mantler.mesh.machine import MachineId

MAX_ATTEMPTS = 32
"""Of one request. A request that brings machines down must not bring all of them down for ever."""
MAX_FRUITLESS_ATTEMPTS = 4
"""One after the other that began to compute and brought no token."""


@dataclass(slots=True)
class Progress:
    """Of one request. Times are those of ``time.monotonic``."""

    deadline_s: float
    excluded: set[MachineId] = field(default_factory=set)
    """Machines that are not asked again for now."""
    accepted: bool = False
    """Whether a machine had the request for a while before it failed."""
    began: bool = False
    """Whether the machine has begun to compute in this attempt."""
    error: MantlerError | None = None
    """Why the last attempt failed."""
    _attempts: int = 0
    _fruitless: int = 0
    _tokens: int = 0

    @property
    def remaining_s(self) -> float:
        """Until the deadline; a millisecond where it has passed."""
        return max(0.001, self.deadline_s - time.monotonic())

    @property
    def retries(self) -> int:
        """So far; the first attempt is none."""
        return self._attempts - 1

    def failed(self, error: MantlerError, machine_id: MachineId, tokens: int) -> None:
        """An attempt has ended. Raises its error where the request has been tried often enough.

        Args:
            tokens: that the client has by now.
        """
        self.error = error
        self.excluded.add(machine_id)
        self._attempts += 1
        # One that waited in a queue when its machine died is not to blame.
        self._fruitless = 0 if tokens > self._tokens else self._fruitless + self.began
        self._tokens, self.began = tokens, False
        if self._attempts >= MAX_ATTEMPTS or self._fruitless >= MAX_FRUITLESS_ATTEMPTS:
            raise error
