"""A machine of the mesh, and the mantles on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

from mantler.messages import ModelState

MachineId = NewType("MachineId", str)
"""Names a machine for as long as it exists, across restarts of its runtime."""


@dataclass(frozen=True, slots=True)
class Mantle:
    """A deployed model: what does not change with each request."""

    model: str
    state: ModelState
    slots: int
    """Requests that run at the same time, at least 1. Stands for how much the mantle can take beside others."""
    queue_capacity: int
    max_request_tokens: int
    """Tokens that one request may hold here, prompt and output together."""
    version: str = ""
    """Which weights these are, where a model id has several."""
    labels: frozenset[tuple[str, str]] = frozenset()

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots: must be at least 1, not {self.slots}")


@dataclass(frozen=True, slots=True)
class Machine:
    """A host that runs a runtime."""

    id: MachineId
    address: str
    """``host:port`` of the runtime's gRPC server."""
    mantles: tuple[Mantle, ...] = ()
    """At most one for a model."""
    capabilities: frozenset[tuple[str, str]] = frozenset()
    draining: bool = False
    """Finishes what it has and takes no new requests."""

    def __post_init__(self) -> None:
        if len({mantle.model for mantle in self.mantles}) != len(self.mantles):
            raise ValueError("mantles: must be at most one for a model")

    @property
    def serving(self) -> tuple[Mantle, ...]:
        """The mantles that take new requests."""
        return () if self.draining else tuple(mantle for mantle in self.mantles if mantle.state is ModelState.READY)


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """How busy one mantle was when its machine reported."""

    model: str
    running: int
    queued: int
    running_tokens: int
    """Tokens that running and queued requests hold or are going to hold, prompts and outputs together."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a machine says about its load. One with a greater ``(epoch, sequence)`` replaces the one before."""

    machine_id: MachineId
    epoch: int
    """The runtime's life that it belongs to; see :class:`mantler.mesh.membership.Version`."""
    sequence: int
    """Grows by at least 1 from report to report."""
    models: tuple[ModelLoad, ...]

    @property
    def running_tokens(self) -> int:
        """Over all models."""
        return sum(load.running_tokens for load in self.models)
