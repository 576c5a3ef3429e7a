"""A machine as its runtime describes it."""

from __future__ import annotations

from dataclasses import dataclass

from mantler.messages.models import ModelInfo


@dataclass(frozen=True, slots=True)
class MachineInfo:
    """What changes seldom; how busy it is stands in :class:`mantler.mesh.machine.LoadReport`."""

    id: str
    """Names it across restarts of its runtime."""
    epoch: int
    """One life of the runtime. A later life has a greater one."""
    revision: int
    """Grows with every change of what stands here, within an epoch."""
    address: str
    """``HOST:PORT``; ``:PORT`` where it does not know by which name others see it; empty where it cannot be dialled."""
    models: tuple[ModelInfo, ...]
    """All in its store, ordered by id, without profiles and counts."""
    draining: bool = False
    """Finishes what it has and takes no new requests."""
    opens_tunnels: bool = False
    """Where it cannot be dialled."""
