"""A membership of machines that come by themselves: each keeps a seat, and is gone when it falls silent."""

from __future__ import annotations

import asyncio
import time

from mantler.errors import ErrorCode, MantlerError
from mantler.mesh.machine import LoadReport
from mantler.messages import MachineInfo
from mantler.routing.view import View

LEASE_S = 2.0
"""A machine that has said nothing for so long is offline."""
REPORT_S = 0.5
"""How often machines are asked to say something."""
GATHER_S = 1.5
"""How long after its start a facade that expects machines waits for the first one before it says that there is none."""


class Seat:
    """One machine's place in the registry, for as long as its connection lasts.

    Attributes:
        over: set once a later life of the machine, or the same one over a new connection, has the place, or when the
            registry closes.
        holder: whose token it came with.
    """

    def __init__(self, machine: MachineInfo, address: str, holder: str, view: View) -> None:
        self.over = asyncio.Event()
        self.holder = holder
        self._machine = machine
        self._address = address
        self._view = view
        self.registered(machine)

    @property
    def epoch(self) -> int:
        """The life that sits here."""
        return self._machine.epoch

    def registered(self, machine: MachineInfo) -> None:
        """The machine says what it is and has. Raises INVALID_PARAMETER where it has become another one."""
        if (machine.id, machine.epoch) != (self._machine.id, self._machine.epoch):
            raise MantlerError(
                ErrorCode.INVALID_PARAMETER, "machine: id and epoch must stay the same in a call.", param="machine"
            )
        self._machine = machine
        now_s = time.monotonic()
        self._view.registered(machine, self._address, now_s=now_s, lease_until_s=now_s + LEASE_S)

    def reported(self, report: LoadReport) -> None:
        """The machine says how busy it is. Raises INVALID_PARAMETER where the report is of another life."""
        if report.epoch != self._machine.epoch:
            raise MantlerError(ErrorCode.INVALID_PARAMETER, "load: epoch must be the machine's.", param="load.epoch")
        now_s = time.monotonic()
        # Another life may have counted when this one was registered, and be gone by now.
        self._view.renewed(self._machine, self._address, now_s=now_s, lease_until_s=now_s + LEASE_S)
        self._view.reported(report, now_s=now_s, lease_until_s=now_s + LEASE_S)

    def left(self) -> None:
        """The machine says farewell."""
        self._view.left(self._machine, now_s=time.monotonic())


class Registry:
    """Gives seats. Lives on the event loop of whoever serves ``MeshService``.

    Args:
        gather_s: how long after the start to wait for a first machine.

    Attributes:
        closed: whether it gives none any more.
    """

    def __init__(self, view: View, *, gather_s: float) -> None:
        self._gather_s = gather_s
        self.closed = False
        self._view = view
        self._seats: dict[str, Seat] = {}
        self._gathered = asyncio.Event()

    def join(self, machine: MachineInfo, address: str, holder: str) -> Seat:
        """A seat for ``machine``, which is reached at ``address`` and came with the token of ``holder``.

        Raises ``MantlerError`` MACHINE_EXISTS where a later life of the machine sits there, which is another runtime of
        the same name, or a machine with another token, and RUNTIME_UNAVAILABLE where the registry is closed.
        """
        if self.closed:
            raise MantlerError(ErrorCode.RUNTIME_UNAVAILABLE, "The facade is shutting down.", retry_after_s=1.0)
        before = self._seats.get(machine.id)
        if before is not None and before.holder != holder:
            raise MantlerError(
                ErrorCode.MACHINE_EXISTS,
                f"machine.id: a runtime with another token is online as {machine.id!r}; give this one another id.",
                param="machine.id",
            )
        if before is not None and before.epoch > machine.epoch:
            raise machine_exists(machine.id)
        seat = self._seats[machine.id] = Seat(machine, address, holder, self._view)
        if before is not None:
            before.over.set()
        self._gathered.set()
        return seat

    def leave(self, machine_id: str, seat: Seat) -> None:
        """The connection of ``seat`` is over. Its machine stays until its lease ends, for it may come again."""
        if self._seats.get(machine_id) is seat:
            del self._seats[machine_id]

    async def start(self) -> None:
        """Begins to wait for machines."""
        asyncio.get_running_loop().call_later(self._gather_s, self._gathered.set)

    async def refresh(self) -> None:
        """Waits for the first machine, for a moment after the start."""
        await self._gathered.wait()

    async def close(self) -> None:
        """Ends every seat. The machines stay what they are: their facade goes, not they."""
        self.closed = True
        for seat in self._seats.values():
            seat.over.set()


def machine_exists(machine_id: str) -> MantlerError:
    """The error of a runtime whose machine's id another one has."""
    return MantlerError(
        ErrorCode.MACHINE_EXISTS,
        f"machine.id: another runtime that started later has joined as {machine_id!r}; give one of them another id.",
        param="machine.id",
    )
