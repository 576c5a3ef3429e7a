"""Machines for tests."""

from __future__ import annotations

from mantler.mesh.directory import Directory
from mantler.mesh.machine import LoadReport, Machine, MachineId, Mantle, ModelLoad
from mantler.mesh.membership import Registered, Version
from mantler.messages import ModelState

MODEL = "smollm2:135m"


def mantle(model: str = MODEL, state: ModelState = ModelState.READY, slots: int = 8) -> Mantle:
    return Mantle(model, state, slots, queue_capacity=16, max_request_tokens=2048)


def machine(name: str, *mantles: Mantle, draining: bool = False) -> Machine:
    return Machine(MachineId(name), f"{name}:50051", mantles or (mantle(),), draining=draining)


def registered(machine: Machine, epoch: int = 1, revision: int = 1, until_s: float = 1e9) -> Registered:
    return Registered(machine, Version(epoch, revision), until_s)


def report(name: str, sequence: int, running_tokens: int, epoch: int = 1) -> LoadReport:
    return LoadReport(MachineId(name), epoch, sequence, (ModelLoad(MODEL, 1, 0, running_tokens),))


def mesh(count: int, slots: int = 8) -> Directory:
    """A directory in which ``m0``, ``m1`` and so on serve the model."""
    directory = Directory()
    for number in range(count):
        directory.apply(registered(machine(f"m{number}", mantle(slots=slots))), now_s=0)
    return directory
