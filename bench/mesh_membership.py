"""How long a facade takes to learn of machines that come, report, go and fall silent."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from mantler.mesh.balancer import Balancer
from mantler.mesh.directory import Directory
from mantler.mesh.machine import LoadReport, Machine, MachineId, Mantle, ModelLoad
from mantler.mesh.membership import Event, Left, Registered, Version
from mantler.messages import ModelState

SAMPLES = 200
LEASE_UNTIL_S = 60.0


@dataclass(frozen=True, slots=True)
class Membership:
    """Times of changes in a mesh of some size. Those of one machine are medians."""

    machines: int
    join_us: float
    report_us: float
    leave_us: float
    all_join_ms: float
    all_expire_ms: float


def mesh_machine(machine_id: MachineId, model: str, slots: int) -> Machine:
    """A machine that serves one model."""
    mantle = Mantle(model, ModelState.READY, slots, queue_capacity=4 * slots, max_request_tokens=8192)
    return Machine(machine_id, f"{machine_id}:50051", (mantle,))


def measure_membership(machines: int) -> Membership:
    """Measures a directory that a balancer follows, filled with ``machines``."""
    directory = Directory(max_machines=machines + SAMPLES)
    Balancer(directory, random.Random(0))

    def joins(prefix: str, count: int) -> list[Event]:
        made = (mesh_machine(MachineId(f"{prefix}{number}"), "model", 64) for number in range(count))
        return [Registered(machine, Version(1, 1), LEASE_UNTIL_S) for machine in made]

    def apply(events: Iterable[Event]) -> list[float]:
        return [_seconds(partial(directory.apply, event, 0)) for event in events]

    all_join = joins("m", machines)
    all_join_s = sum(apply(all_join))
    names = [MachineId(f"m{number % machines}") for number in range(SAMPLES)]
    loads = (ModelLoad("model", 8, 0, 4096),)
    one_joins = apply(joins("new", SAMPLES))
    reports = apply(LoadReport(name, 1, number, loads) for number, name in enumerate(names))
    leaves = apply(Left(MachineId(f"new{number}"), Version(1, 1)) for number in range(SAMPLES))
    all_expire_s = _seconds(lambda: directory.expire(LEASE_UNTIL_S))
    if len(directory):
        raise AssertionError("every lease has ended, and some machine is online")
    return Membership(
        machines,
        1e6 * statistics.median(one_joins),
        1e6 * statistics.median(reports),
        1e6 * statistics.median(leaves),
        1e3 * all_join_s,
        1e3 * all_expire_s,
    )


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
