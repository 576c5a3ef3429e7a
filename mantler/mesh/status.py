"""A machine as its operators see it."""

from __future__ import annotations

from dataclasses import dataclass

from mantler.mesh.machine import LoadReport
from mantler.messages import MachineInfo


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """What one facade knows of a machine."""

    info: MachineInfo
    """What it said last. Its address is where the facade dials it; empty means a tunnel."""
    online: bool
    report: LoadReport | None
    """The last one of this life."""
    own_tokens: int
    """Of this facade's own requests there."""
    broken: bool
    """Whether its circuit breaker keeps requests away, because too many failed."""
