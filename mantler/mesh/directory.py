"""A facade's view of the mesh: which machines are online and which of them serve a model.

For each machine the directory keeps the greatest registration, farewell, lease and report that it has heard of. What
it shows follows from these four and the time, so that events may come in any order (a join of semilattices, as in
state-based CRDTs: Shapiro et al., "Conflict-free Replicated Data Types", 2011).

An event costs O(log machines) and the end of a lease as much; nothing looks at all machines.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mantler.errors import ErrorCode, MantlerError
from mantler.mesh.indexed_set import IndexedSet
from mantler.mesh.machine import LoadReport, Machine, MachineId
from mantler.mesh.membership import Event, Left, Registered, Renewed, Version


@dataclass(frozen=True, slots=True)
class MachineChange:
    """A machine came online (``before`` is ``None``), went offline (``after`` is ``None``), or its facts changed.

    One whose runtime was started anew goes offline and comes online, so that nothing of its earlier life is kept.
    """

    machine_id: MachineId
    before: Machine | None
    after: Machine | None


Change = MachineChange | LoadReport
"""A report is a change when it is newer than the last one and its machine is online."""


@dataclass(slots=True)
class _Record:
    machine_id: MachineId
    machine: Machine | None = None
    registered: Version | None = None
    left: Version | None = None
    lease: tuple[int, float] = (-1, -math.inf)
    """The epoch it is for, and its end."""
    report: LoadReport | None = None
    shown: Machine | None = None
    """What the last change said. ``None`` is offline."""
    shown_epoch: int = -1
    shown_report: LoadReport | None = None
    wake_s: float = math.inf
    """The time of its valid entry in the heap."""


class Directory:
    """Applies events and tells subscribers what changed.

    Args:
        forget_after_s: how long a machine that is offline is remembered. For that long its models are known, and late
            events of its past cannot bring it back.
        max_machines: how many are remembered, offline ones included.
    """

    def __init__(self, *, forget_after_s: float = 600.0, max_machines: int = 10_000) -> None:
        self._forget_after_s = forget_after_s
        self._max_machines = max_machines
        self._records: dict[MachineId, _Record] = {}
        self._offline: OrderedDict[MachineId, float] = OrderedDict()
        """Since when, the longest first."""
        self._online = 0
        self._ends: list[tuple[float, MachineId]] = []
        """A heap of the ends of leases. A renewal does not touch it: the end is looked up when the old one comes."""
        self._expire_from_s = -math.inf
        self._serving: dict[str, IndexedSet[MachineId]] = {}
        self._known: Counter[str] = Counter()
        self._subscribers: list[Callable[[Change], None]] = []

    def __len__(self) -> int:
        """Machines that are online."""
        return self._online

    def get(self, machine_id: MachineId) -> Machine | None:
        """The machine, if it is online."""
        record = self._records.get(machine_id)
        return record.shown if record else None

    def online(self) -> Iterator[Machine]:
        """Every machine that is online."""
        return (record.shown for record in self._records.values() if record.shown)

    def serving(self, model: str) -> Sequence[MachineId]:
        """The machines that take requests for ``model``, in no order. Membership and indexing cost O(1)."""
        return self._serving.get(model, ())

    def models(self) -> list[str]:
        """The models that some machine serves, sorted."""
        return sorted(self._serving)

    def knows(self, model: str) -> bool:
        """Whether some machine that is remembered, offline ones included, has the model."""
        return model in self._known

    def has(self, machine_id: MachineId, model: str) -> bool:
        """Whether the machine, if it is remembered, has the model, online or not."""
        record = self._records.get(machine_id)
        machine = record.machine if record else None
        return machine is not None and any(mantle.model == model for mantle in machine.mantles)

    def subscribe(self, subscriber: Callable[[Change], None]) -> Callable[[], None]:
        """Calls ``subscriber`` with every change, after it. Returns what ends that."""
        self._subscribers.append(subscriber)
        return lambda: self._subscribers.remove(subscriber)

    def apply(self, event: Event, now_s: float) -> tuple[Change, ...]:
        """Takes in one event. Returns what changed, which is nothing where the event is old.

        Raises:
            MantlerError: 503, where ``max_machines`` are online and the event is about another one.
        """
        match event:
            case Registered(machine, version, lease_until_s):
                record = self._record(machine.id, now_s)
                if record.registered is None or version > record.registered:
                    self._count(record.machine, -1)
                    self._count(machine, +1)
                    record.machine, record.registered = machine, version
                record.lease = max(record.lease, (version.epoch, lease_until_s))
            case Renewed(machine_id, epoch, lease_until_s):
                record = self._record(machine_id, now_s)
                record.lease = max(record.lease, (epoch, lease_until_s))
            case LoadReport():
                record = self._record(event.machine_id, now_s)
                if record.report is None or _order(event) > _order(record.report):
                    record.report = event
            case Left(machine_id, version):
                record = self._record(machine_id, now_s)
                if record.left is None or version > record.left:
                    record.left = version
        return self._show(record, now_s)

    def expire(self, now_s: float) -> tuple[Change, ...]:
        """Takes machines whose leases have ended offline. Costs nothing when none has: call it before each choice."""
        if now_s < self._expire_from_s:
            return ()
        changes: list[Change] = []
        while self._ends and self._ends[0][0] <= now_s:
            end_s, machine_id = heapq.heappop(self._ends)
            record = self._records.get(machine_id)
            if record and record.wake_s == end_s:
                record.wake_s = math.inf
                changes += self._show(record, now_s)
        while self._offline and next(iter(self._offline.values())) + self._forget_after_s <= now_s:
            self._forget_oldest()
        return tuple(changes)

    def suspend_expiry(self) -> None:
        """Keeps online what is online: the source of membership is lost, which says nothing about the machines."""
        self._expire_from_s = math.inf

    def resume_expiry(self, now_s: float, grace_s: float) -> None:
        """The source is back. Machines have ``grace_s`` to be heard of before their old leases count again."""
        self._expire_from_s = now_s + grace_s

    def _record(self, machine_id: MachineId, now_s: float) -> _Record:
        record = self._records.get(machine_id)
        if record is None:
            if len(self._records) >= self._max_machines:
                if not self._offline:
                    message = f"The mesh has {self._max_machines} machines, which is the most that it takes."
                    raise MantlerError(ErrorCode.RUNTIME_UNAVAILABLE, message)
                self._forget_oldest()
            record = self._records[machine_id] = _Record(machine_id)
            self._offline[machine_id] = now_s
        return record

    def _forget_oldest(self) -> None:
        machine_id, _ = self._offline.popitem(last=False)
        self._count(self._records.pop(machine_id).machine, -1)

    def _show(self, record: _Record, now_s: float) -> tuple[Change, ...]:
        """Brings what is shown of a machine in line with what is known of it."""
        after = self._current(record, now_s)
        changes: list[Change] = []
        if after and record.shown and record.registered and record.registered.epoch != record.shown_epoch:
            changes += self._turn(record, None, now_s)
        if after != record.shown:
            changes += self._turn(record, after, now_s)
        report = _current_report(record) if after else None
        if report != record.shown_report:
            record.shown_report = report
            if report:
                changes.append(report)
        if after and record.lease[1] < record.wake_s:
            record.wake_s = record.lease[1]
            heapq.heappush(self._ends, (record.wake_s, record.machine_id))
        for change in changes:
            for subscriber in tuple(self._subscribers):
                subscriber(change)
        return tuple(changes)

    def _turn(self, record: _Record, after: Machine | None, now_s: float) -> tuple[MachineChange]:
        before, record.shown = record.shown, after
        record.shown_epoch = record.registered.epoch if record.registered else -1
        record.shown_report = None if after is None else record.shown_report
        self._move(record.machine_id, before, after, now_s)
        return (MachineChange(record.machine_id, before, after),)

    def _current(self, record: _Record, now_s: float) -> Machine | None:
        registered, left = record.registered, record.left
        if registered is None or (left is not None and left >= registered):
            return None
        epoch, end_s = record.lease
        reported = record.report.epoch if record.report else registered.epoch
        # Whoever has heard of a later life knows that this one is over, though not yet what the later one serves.
        if epoch != registered.epoch or reported > registered.epoch:
            return None
        kept = record.shown is not None and now_s < self._expire_from_s
        return record.machine if end_s > now_s or kept else None

    def _move(self, machine_id: MachineId, before: Machine | None, after: Machine | None, now_s: float) -> None:
        if after is None:
            self._offline[machine_id] = now_s
            self._online -= 1
        elif before is None:
            del self._offline[machine_id]
            self._online += 1
        for mantle in before.serving if before else ():
            machines = self._serving[mantle.model]
            machines.discard(machine_id)
            if not machines:
                del self._serving[mantle.model]
        for mantle in after.serving if after else ():
            self._serving.setdefault(mantle.model, IndexedSet()).add(machine_id)

    def _count(self, machine: Machine | None, step: int) -> None:
        for mantle in machine.mantles if machine else ():
            self._known[mantle.model] += step
            if not self._known[mantle.model]:
                del self._known[mantle.model]


def _order(report: LoadReport) -> tuple[int, int]:
    return report.epoch, report.sequence


def _current_report(record: _Record) -> LoadReport | None:
    """The last report, if it is of the life that is registered."""
    report, registered = record.report, record.registered
    return report if report and registered and report.epoch == registered.epoch else None
