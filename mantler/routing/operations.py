"""What operators of a mesh see and change: its machines, and what they serve."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace

from mantler.client import UNARY_TIMEOUT_S, RuntimeClient
from mantler.errors import ErrorCode, MantlerError
from mantler.mesh.balancer import Balancer
from mantler.mesh.breaker import BreakerState
from mantler.mesh.machine import MachineId
from mantler.mesh.status import MachineStatus
from mantler.messages import LoadProgress, LoadStage
from mantler.routing.clients import Clients
from mantler.routing.view import SeenMachine, View
from mantler.security.loopback import is_socket
from mantler.telemetry import log_event

HEARD_LEASE_S = 2.0
"""How long a machine counts as online for what it has answered here."""
MAX_NAMED = 5
"""Machines that an error names."""

_LOST = frozenset({ErrorCode.MACHINE_OFFLINE, ErrorCode.RUNTIME_UNAVAILABLE})
"""Errors of a load whose machine is gone or going."""
_log = logging.getLogger("mantler.operations")


class Operations:
    """Works through the connections of the facade. Lives on its event loop.

    What a method has changed holds for the requests that this facade gets afterwards. Each method that names a machine
    raises ``MantlerError`` MACHINE_NOT_FOUND or MACHINE_OFFLINE where it cannot be asked, and what the machine raises.
    """

    def __init__(self, view: View, balancer: Balancer, clients: Clients) -> None:
        self._view = view
        self._balancer = balancer
        self._clients = clients

    def machines(self) -> list[MachineStatus]:
        """Every machine, those that went offline lately included, ordered by id."""
        return [self._status(seen) for seen in self._view.machines()]

    async def drain(self, machine: str, *, draining: bool = True) -> None:
        """Keeps new requests away from a machine, or lets them come again. Running ones finish."""
        with self._reach(machine) as client:
            await client.set_draining(draining)
            log_event(_log, "drained" if draining else "in service again", machine=machine)
            await self._look(machine, client)

    async def deploy(self, machine: str, model: str, *, pull: bool = True) -> AsyncGenerator[LoadProgress, None]:
        """Brings a model into memory on a machine and reports on it; the last report has the stage READY.

        Closing the iterator leaves the load running there. A machine that goes away in the middle is an error that says
        how to go on.

        Args:
            pull: fetches and converts the model where the machine does not have it.
        """
        ready: LoadProgress | None = None
        with self._reach(machine) as client:
            log_event(_log, "deploying", machine=machine, model=model)
            with _interrupted(machine, model):
                async with aclosing(client.load_model(model, pull=pull)) as reports:
                    async for report in reports:
                        if report.stage is LoadStage.READY:
                            ready = report
                        else:
                            yield report
                if ready is None:
                    raise MantlerError(ErrorCode.RUNTIME_UNAVAILABLE, "The runtime ended the load without a word.")
            log_event(_log, "deployed", machine=machine, model=model)
            # Whoever is told that it is ready may ask for an answer at once.
            await self._look(machine, client)
        yield ready

    async def undeploy(self, machine: str, model: str, *, timeout_s: float | None = None) -> None:
        """Takes a model out of a machine's memory once its running requests have finished.

        The machine bounds how long they may take, and goes on where the caller leaves.
        """
        with self._reach(machine) as client:
            log_event(_log, "undeploying", machine=machine, model=model)
            await client.unload_model(model, timeout_s)
            log_event(_log, "undeployed", machine=machine, model=model)
            await self._look(machine, client)

    def _status(self, seen: SeenMachine) -> MachineStatus:
        machine_id = MachineId(seen.info.id)
        return MachineStatus(
            replace(seen.info, address="" if is_socket(seen.address) else seen.address),
            seen.online,
            seen.report,
            self._balancer.own_tokens(machine_id),
            self._balancer.circuit(machine_id, time.monotonic()) not in (None, BreakerState.CLOSED),
        )

    @contextlib.contextmanager
    def _reach(self, machine: str) -> Iterator[RuntimeClient]:
        seen = self._view.machine(MachineId(machine))
        if seen is None:
            raise self._unknown(machine)
        if not seen.online:
            raise MantlerError(
                ErrorCode.MACHINE_OFFLINE, f"{machine} is offline.", param="machine", retry_after_s=HEARD_LEASE_S
            )
        with self._clients.using(seen.address) as client:
            yield client

    def _unknown(self, machine: str) -> MantlerError:
        known = [seen.info.id for seen in self._view.machines()]
        rest = f" and {len(known) - MAX_NAMED} more" if len(known) > MAX_NAMED else ""
        named = f"It has {', '.join(known[:MAX_NAMED])}{rest}." if known else "It has none yet."
        return MantlerError(
            ErrorCode.MACHINE_NOT_FOUND, f"The mesh has no machine {machine!r}. {named}", param="machine"
        )

    async def _look(self, machine: str, client: RuntimeClient) -> None:
        """Takes in what the machine is now, before its membership tells."""
        seen = self._view.machine(MachineId(machine))
        try:
            info, report = await client.get_machine(UNARY_TIMEOUT_S)
        except MantlerError as error:
            # What was asked for is done; if the machine is gone since, its membership says so.
            _log.warning("%s has done what it was told and does not say how it is: %s", machine, error.code.value)
            return
        if seen is None or info.id != machine:
            return
        now_s = time.monotonic()
        lease_until_s = now_s + HEARD_LEASE_S
        self._view.registered(info, seen.address, now_s=now_s, lease_until_s=lease_until_s)
        self._view.reported(report, now_s=now_s, lease_until_s=lease_until_s)


@contextlib.contextmanager
def _interrupted(machine: str, model: str) -> Iterator[None]:
    """Where the machine of a load is lost, the error says what to do."""
    try:
        yield
    except MantlerError as error:
        if error.code not in _LOST:
            raise
        raise MantlerError(
            error.code,
            f"{machine} was lost while it loaded {model}: {error.message} Deploy the model again once the machine is "
            "back; what it has downloaded or stored is not fetched again.",
            retry_after_s=error.retry_after_s,
        ) from error
