"""Machines and their loads, as protobuf messages and back."""

from __future__ import annotations

from mantler import messages as m
from mantler.config import MAX_MACHINE_NAME_CHARS
from mantler.errors import invalid
from mantler.mesh.machine import LoadReport, MachineId, ModelLoad
from mantler.mesh.status import MachineStatus
from mantler.v1 import admin_pb2, machine_pb2
from mantler.wire.models import model_from_proto, model_to_proto

MAX_MACHINE_MODELS = 1000
MAX_MODEL_ID_CHARS = 300
MAX_UNIX_S = 253_402_300_799
"""The last second of the year 9999, which is as far as ``google.protobuf.Timestamp`` goes."""


def machine_to_proto(machine: m.MachineInfo) -> machine_pb2.Machine:
    """A machine's description for the wire."""
    return machine_pb2.Machine(
        id=machine.id,
        epoch=machine.epoch,
        revision=machine.revision,
        address=machine.address,
        models=[model_to_proto(model) for model in machine.models],
        draining=machine.draining,
        opens_tunnels=machine.opens_tunnels,
    )


def machine_from_proto(message: machine_pb2.Machine) -> m.MachineInfo:
    """A machine's description off the wire. Raises ``MantlerError`` for one that cannot be."""
    if not (0 < len(message.id) <= MAX_MACHINE_NAME_CHARS and message.id.isprintable()):
        raise invalid("machine.id", f"must be 1 to {MAX_MACHINE_NAME_CHARS} printable characters.")
    if message.epoch == 0:
        raise invalid("machine.epoch", "must be the time at which the runtime started, in nanoseconds.")
    if len(message.models) > MAX_MACHINE_MODELS:
        raise invalid("machine.models", f"must be at most {MAX_MACHINE_MODELS}.")
    for model in message.models:
        if not (0 < len(model.id) <= MAX_MODEL_ID_CHARS and model.id.isprintable()):
            raise invalid("machine.models.id", f"must be 1 to {MAX_MODEL_ID_CHARS} printable characters.")
        if not 0 <= model.create_time.seconds <= MAX_UNIX_S:
            raise invalid("machine.models.create_time", "must be between the years 1970 and 9999.")
    if len({model.id for model in message.models}) != len(message.models):
        raise invalid("machine.models", "must have each id once.")
    try:
        models = tuple(model_from_proto(model) for model in message.models)
    except KeyError as error:
        raise invalid("machine.models", "holds a state that this version does not know.") from error
    if any(model.deployment is not None and model.deployment.slots < 1 for model in models):
        raise invalid("machine.models.deployment.slots", "must be at least 1.")
    return m.MachineInfo(
        id=message.id,
        epoch=message.epoch,
        revision=message.revision,
        address=message.address,
        models=models,
        draining=message.draining,
        opens_tunnels=message.opens_tunnels,
    )


def load_to_proto(report: LoadReport) -> machine_pb2.MachineLoad:
    """A machine's load for the wire."""
    return machine_pb2.MachineLoad(
        epoch=report.epoch,
        sequence=report.sequence,
        models=[
            machine_pb2.ModelLoad(
                model=load.model, running=load.running, queued=load.queued, held_tokens=load.running_tokens
            )
            for load in report.models
        ],
    )


def load_from_proto(machine_id: MachineId, message: machine_pb2.MachineLoad) -> LoadReport:
    """The load of ``machine_id`` off the wire."""
    if len(message.models) > MAX_MACHINE_MODELS:
        raise invalid("load.models", f"must be at most {MAX_MACHINE_MODELS}.")
    return LoadReport(
        machine_id,
        message.epoch,
        message.sequence,
        tuple(
            ModelLoad(load.model, running=load.running, queued=load.queued, running_tokens=load.held_tokens)
            for load in message.models
        ),
    )


def status_to_proto(status: MachineStatus) -> admin_pb2.MeshMachine:
    """A machine as a facade sees it, for the wire."""
    return admin_pb2.MeshMachine(
        machine=machine_to_proto(status.info),
        online=status.online,
        load=None if status.report is None else load_to_proto(status.report),
        own_tokens=status.own_tokens,
        broken=status.broken,
    )


def status_from_proto(message: admin_pb2.MeshMachine) -> MachineStatus:
    """A machine as a facade sees it, off the wire. Raises ``MantlerError`` for one that cannot be."""
    info = machine_from_proto(message.machine)
    return MachineStatus(
        info,
        message.online,
        load_from_proto(MachineId(info.id), message.load) if message.HasField("load") else None,
        message.own_tokens,
        message.broken,
    )
