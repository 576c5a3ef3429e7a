"""What a facade hears about machines, from whatever keeps the membership.

Events may come late, twice and in any order: each carries what tells old from new. :class:`mantler.routing.view.View`
numbers the lives of a machine's runtimes, which count their own registrations.
"""

from __future__ import annotations

from dataclasses import dataclass

from mantler.mesh.machine import LoadReport, Machine, MachineId


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """Orders what is said about one machine. The same version always says the same."""

    epoch: int
    """One life of its runtime. A later life has a greater one."""
    revision: int
    """Grows with every registration of that life."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A machine came, or its facts changed."""

    machine: Machine
    version: Version
    lease_until_s: float
    """When it counts as offline unless it renews, on the facade's clock."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """A machine is still there."""

    machine_id: MachineId
    epoch: int
    lease_until_s: float


@dataclass(frozen=True, slots=True)
class Left:
    """A machine said farewell, or its lease was revoked. Undoes registrations up to ``version``, not later ones."""

    machine_id: MachineId
    version: Version


Event = Registered | Renewed | LoadReport | Left
