"""What a facade knows of the machines: the directory, and what each machine says of its models."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

from mantler.mesh.directory import Change, Directory, MachineChange
from mantler.mesh.machine import LoadReport, Machine, MachineId, Mantle
from mantler.mesh.membership import Left, Registered, Renewed, Version
from mantler.messages import MachineInfo, ModelInfo, ModelState

MAX_OFFLINE = 1000
"""Machines that are gone and remembered, for operators."""


@dataclass(frozen=True, slots=True)
class SeenMachine:
    """A machine as a facade knows it."""

    info: MachineInfo
    """What it said last."""
    address: str
    """Where it is reached from here."""
    online: bool
    report: LoadReport | None
    """The last one of this life."""


@dataclass(slots=True)
class _Life:
    """The life of a machine's runtime that counts."""

    epoch: int
    """What the machine calls it."""
    number: int
    """What the directory knows it as."""
    departures: int = 0
    """How often it left or moved. What is heard of it afterwards counts as later, though it is the same life."""


class View:
    """Takes in what a membership hears of machines.

    Of two runtimes with one name the one that started later counts, for as long as it is online. After that the other
    one does, if it is still heard of: so lives are numbered anew, in the order in which they have come to count.

    Attributes:
        directory: who is online and who serves what.
    """

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._infos: dict[MachineId, MachineInfo] = {}
        self._reports: dict[MachineId, LoadReport] = {}
        self._addresses: dict[MachineId, str] = {}
        self._lives: dict[MachineId, _Life] = {}
        self._numbers = itertools.count(1)
        self._offline: dict[MachineId, None] = {}
        """The longest gone first."""
        directory.subscribe(self._take)

    def served(self, allowed: Container[MachineId] | None = None) -> list[ModelInfo]:
        """Every model that takes requests on some machine, once, ordered by id.

        Args:
            allowed: the machines that count; ``None`` is all.
        """
        found: dict[str, ModelInfo] = {}
        for machine_id, machine in self._infos.items():
            if machine_id not in self._offline and not machine.draining and (allowed is None or machine_id in allowed):
                found.update({model.id: model for model in machine.models if model.state is ModelState.READY})
        return [found[name] for name in sorted(found)]

    def machines(self) -> list[SeenMachine]:
        """Every machine, those that went offline lately included, ordered by id."""
        return [self._seen(machine_id) for machine_id in sorted(self._infos)]

    def machine(self, machine_id: MachineId) -> SeenMachine | None:
        """One of them."""
        return self._seen(machine_id) if machine_id in self._infos else None

    def addresses(self) -> frozenset[str]:
        """Where the machines that are online are reached."""
        return frozenset(self._addresses[machine_id] for machine_id in self._infos if machine_id not in self._offline)

    def registered(self, machine: MachineInfo, address: str, *, now_s: float, lease_until_s: float) -> None:
        """A machine came, or what it has has changed.

        Args:
            address: where it is reached from here.
            lease_until_s: when it counts as offline unless more is heard.
        """
        machine_id = MachineId(machine.id)
        life = self._lives.get(machine_id)
        if life is None or machine.epoch > life.epoch or (machine.epoch < life.epoch and machine_id in self._offline):
            life = _Life(machine.epoch, next(self._numbers))
        elif machine.epoch < life.epoch:
            return
        if machine_id in self._addresses and self._addresses[machine_id] != address:
            # Nothing of what it says of itself has changed, but where it is has.
            life.departures += 1
            self._addresses[machine_id] = address
        at = Machine(machine_id, address, tuple(_mantles(machine.models)), draining=machine.draining)
        known = self._infos.get(machine_id)
        if known is None or known.epoch != machine.epoch or machine.revision > known.revision:
            self._infos[machine_id] = machine
            self._addresses[machine_id] = address
        if known is None:
            self._offline[machine_id] = None
        self._lives[machine_id] = life
        self.directory.apply(Registered(at, _version(life, machine), lease_until_s), now_s)

    def renewed(self, machine: MachineInfo, address: str, *, now_s: float, lease_until_s: float) -> None:
        """A machine is there as it was registered. See :meth:`registered`, of which it is the cheap half."""
        life = self._lives.get(MachineId(machine.id))
        if life is None or life.epoch != machine.epoch:
            self.registered(machine, address, now_s=now_s, lease_until_s=lease_until_s)
        else:
            self.heard(MachineId(machine.id), now_s=now_s, lease_until_s=lease_until_s)

    def reported(self, report: LoadReport, *, now_s: float, lease_until_s: float) -> None:
        """A machine that was registered is still there, and this busy."""
        life = self._lives.get(report.machine_id)
        if life is not None and life.epoch == report.epoch:
            self.directory.apply(Renewed(report.machine_id, life.number, lease_until_s), now_s)
            self.directory.apply(replace(report, epoch=life.number), now_s)
            self._reports[report.machine_id] = report

    def heard(self, machine_id: MachineId, *, now_s: float, lease_until_s: float) -> None:
        """Something came from a machine that is online, so it is there, whatever its membership knows."""
        life = self._lives.get(machine_id)
        if life is not None and machine_id not in self._offline:
            self.directory.apply(Renewed(machine_id, life.number, lease_until_s), now_s)

    def left(self, machine: MachineInfo, *, now_s: float) -> None:
        """A machine said farewell, or refuses connections. It is back when it is registered again."""
        machine_id = MachineId(machine.id)
        life = self._lives.get(machine_id)
        if life is not None and life.epoch == machine.epoch:
            self.directory.apply(Left(machine_id, _version(life, machine)), now_s)
            life.departures += 1

    def _seen(self, machine_id: MachineId) -> SeenMachine:
        info, report = self._infos[machine_id], self._reports.get(machine_id)
        return SeenMachine(
            info,
            self._addresses[machine_id],
            machine_id not in self._offline,
            report if report is not None and report.epoch == info.epoch else None,
        )

    def _take(self, change: Change) -> None:
        if not isinstance(change, MachineChange):
            return
        self._offline.pop(change.machine_id, None)
        if change.after is None:
            self._offline[change.machine_id] = None
            if len(self._offline) > MAX_OFFLINE:
                self._forget(next(iter(self._offline)))

    def _forget(self, machine_id: MachineId) -> None:
        for kept in (self._offline, self._infos, self._reports, self._addresses, self._lives):
            kept.pop(machine_id, None)


def _version(life: _Life, machine: MachineInfo) -> Version:
    return Version(life.number, machine.revision + life.departures)


def _mantles(models: Iterable[ModelInfo]) -> Iterable[Mantle]:
    for model in models:
        deployment = model.deployment
        if deployment is not None:
            yield Mantle(
                model.id,
                model.state,
                slots=deployment.slots,
                queue_capacity=deployment.queue_capacity,
                max_request_tokens=deployment.max_request_tokens,
            )
