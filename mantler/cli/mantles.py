"""``mantler mantles``: the models that the machines of a mesh have in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from mantler.cli.commands import Command
from mantler.cli.machines import list_machines
from mantler.cli.operator import operator_options, run_operation
from mantler.cli.options import json_option
from mantler.cli.settings import read
from mantler.cli.terminal import note, print_json, print_table
from mantler.config import OperatorSettings
from mantler.mesh.machine import ModelLoad
from mantler.messages import ModelInfo, ModelState

if TYPE_CHECKING:
    from mantler.mesh.status import MachineStatus


@dataclass(frozen=True, slots=True)
class _Mantle:
    machine: str
    model: ModelInfo
    draining: bool
    load: ModelLoad

    @property
    def state(self) -> str:
        return "draining" if self.draining and self.model.state is ModelState.READY else self.model.state.value


@click.command(cls=Command)
@json_option
@operator_options
def mantles(json: bool, flags: dict[str, object]) -> None:
    """List what a mesh serves: each model on each machine that has it in memory.

    \b
    Examples:
      mantler mantles
      mantler mantles --json | jq -r '.[] | select(.state == "ready") | .model' | sort -u
    """
    settings = read(OperatorSettings, flags)
    found = sorted(_mantles(run_operation(list_machines(settings))), key=lambda each: (each.model.id, each.machine))
    if json:
        print_json([_as_json(mantle) for mantle in found])
    elif found:
        headers = ("model", "machine", "state", "slots", "queue", "tokens", "tokens per request", "device")
        print_table(headers, [_row(mantle) for mantle in found])
    else:
        note("No machine that is online has a model in memory. `mantler deploy MODEL --machine ID` brings one there.")


def _mantles(machines: Iterable[MachineStatus]) -> Iterator[_Mantle]:
    for status in machines:
        loads = {load.model: load for load in status.report.models} if status.report else {}
        for model in status.info.models:
            if status.online and model.state is not ModelState.STORED:
                idle = ModelLoad(model.id, running=0, queued=0, running_tokens=0)
                yield _Mantle(status.info.id, model, status.info.draining, loads.get(model.id, idle))


def _as_json(mantle: _Mantle) -> dict[str, object]:
    deployment = mantle.model.deployment
    return {
        "model": mantle.model.id,
        "machine": mantle.machine,
        "state": mantle.state,
        "slots": None if deployment is None else deployment.slots,
        "slots_used": mantle.load.running,
        "queue_capacity": None if deployment is None else deployment.queue_capacity,
        "queue_length": mantle.load.queued,
        "held_tokens": mantle.load.running_tokens,
        "max_request_tokens": None if deployment is None else deployment.max_request_tokens,
        "device": None if deployment is None else deployment.device,
    }


def _row(mantle: _Mantle) -> tuple[str, ...]:
    deployment, load = mantle.model.deployment, mantle.load
    head = (mantle.model.id, mantle.machine, mantle.state)
    if deployment is None:
        return (*head, "", "", "", "", "")
    return (
        *head,
        f"{load.running}/{deployment.slots}",
        f"{load.queued}/{deployment.queue_capacity}",
        str(load.running_tokens),
        str(deployment.max_request_tokens),
        deployment.device,
    )
