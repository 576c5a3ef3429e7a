"""What a facade knows of the machines: the directory, and what each machine says of its models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mantler.mesh.directory import Change, Directory, MachineChange
from mantler.mesh.machine import LoadReport, Machine, MachineId, Mantle, ModelLoad
from mantler.mesh.membership import Left, Registered, Renewed, Version
from mantler.messages import ModelInfo, ModelState


class View:
    """Takes what a membership hears of machines in terms of their models.

    Attributes:
        directory: who is online and who serves what.
    """

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._models: dict[MachineId, tuple[ModelInfo, ...]] = {}
        self._epochs: dict[MachineId, int] = {}
        """The lives of the machines that are online."""
        directory.subscribe(self._take)

    def models(self) -> list[ModelInfo]:
        """Every model of a machine that is online, once, ordered by id; where several have it, one that serves it."""
        found: dict[str, ModelInfo] = {}
        for models in self._models.values():
            for model in models:
                if model.id not in found or model.state is ModelState.READY:
                    found[model.id] = model
        return [found[name] for name in sorted(found)]

    def registered(
        self,
        machine_id: MachineId,
        address: str,
        models: Sequence[ModelInfo],
        version: Version,
        *,
        now_s: float,
        lease_until_s: float,
        draining: bool = False,
    ) -> None:
        """A machine came, or what it serves has changed."""
        machine = Machine(machine_id, address, tuple(_mantles(models)), draining=draining)
        self._epochs[machine_id] = version.epoch
        self.directory.apply(Registered(machine, version, lease_until_s), now_s)
        self._tell(machine_id, models)

    def renewed(
        self,
        machine_id: MachineId,
        models: Sequence[ModelInfo],
        epoch: int,
        *,
        now_s: float,
        lease_until_s: float,
        sequence: int,
    ) -> None:
        """A machine is still there, and this busy."""
        self.directory.apply(Renewed(machine_id, epoch, lease_until_s), now_s)
        self.directory.apply(LoadReport(machine_id, epoch, sequence, tuple(_loads(models))), now_s)
        self._tell(machine_id, models)

    def heard(self, machine_id: MachineId, *, now_s: float, lease_until_s: float) -> None:
        """Something came from a machine that is online, so it is there, whatever its membership knows."""
        epoch = self._epochs.get(machine_id)
        if epoch is not None:
            self.directory.apply(Renewed(machine_id, epoch, lease_until_s), now_s)

    def left(self, machine_id: MachineId, version: Version, *, now_s: float) -> None:
        """A machine said farewell, or refuses connections."""
        self.directory.apply(Left(machine_id, version), now_s)

    def _tell(self, machine_id: MachineId, models: Sequence[ModelInfo]) -> None:
        if self.directory.get(machine_id) is not None:
            self._models[machine_id] = tuple(models)

    def _take(self, change: Change) -> None:
        if isinstance(change, MachineChange) and change.after is None:
            self._models.pop(change.machine_id, None)
            self._epochs.pop(change.machine_id, None)


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


def _loads(models: Iterable[ModelInfo]) -> Iterable[ModelLoad]:
    for model in models:
        deployment = model.deployment
        if deployment is not None:
            yield ModelLoad(
                model.id,
                running=deployment.slots_used,
                queued=deployment.queue_length,
                running_tokens=deployment.held_tokens,
                kv_blocks_used=0,
                kv_blocks_total=0,
            )
