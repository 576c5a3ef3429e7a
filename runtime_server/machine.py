"""What a runtime says of its machine: who it is, what it has, how busy it is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from mantler.mesh.machine import LoadReport, MachineId, ModelLoad
from mantler.messages import EngineProfile, MachineInfo, ModelInfo
from runtime_server.deployments import Deployments


class ThisMachine:
    """Describes the machine whose models are ``deployments``. Lives on the event loop.

    Args:
        machine_id: of the machine.
        address: where others reach it, as :class:`mantler.messages.MachineInfo` has it.
        started_ns: when the runtime started, unix time in nanoseconds.
    """

    def __init__(self, machine_id: MachineId, address: str, deployments: Deployments, started_ns: int = 0) -> None:
        self._deployments = deployments
        self._info = MachineInfo(machine_id, started_ns or time.time_ns(), 0, address, ())
        self._sequence = 0
        self._news = asyncio.Event()

    @property
    def id(self) -> MachineId:
        """Of the machine."""
        return MachineId(self._info.id)

    async def info(self) -> MachineInfo:
        """What it is and has now. The revision has grown where that is not what the last call said."""
        models = tuple(map(_lasting, await self._deployments.models()))
        draining = self._deployments.draining
        if (models, draining) != (self._info.models, self._info.draining) or not self._info.revision:
            self._info = replace(self._info, revision=self._info.revision + 1, models=models, draining=draining)
        return self._info

    def load(self) -> LoadReport:
        """How busy it is now."""
        self._sequence += 1
        deployments = [(model.manifest.id, model.deployment()) for model in self._deployments.ready]
        return LoadReport(
            self.id,
            self._info.epoch,
            self._sequence,
            tuple(
                ModelLoad(
                    name,
                    running=deployment.slots_used,
                    queued=deployment.queue_length,
                    running_tokens=deployment.held_tokens,
                )
                for name, deployment in deployments
            ),
        )

    def set_draining(self, draining: bool) -> None:
        """Takes no new requests, or takes them again."""
        self._deployments.draining = draining
        self.tell()

    def tell(self) -> None:
        """Wakes those who wait for news."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def news(self) -> None:
        """Returns when something has changed that :meth:`info` says."""
        await self._news.wait()


def _lasting(model: ModelInfo) -> ModelInfo:
    """``model`` without what changes with every request."""
    if model.deployment is None:
        return model
    quiet = replace(model.deployment, slots_used=0, queue_length=0, held_tokens=0, profile=EngineProfile())
    return replace(model, deployment=quiet)
