"""``mantler machines`` and ``mantler drain``: the machines of a mesh, and taking them out of service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from mantler.cli.commands import Command
from mantler.cli.errors import BadUsage, CliError
from mantler.cli.expiry import show_time
from mantler.cli.operator import operating, operator_options, run_operation
from mantler.cli.options import json_option, option
from mantler.cli.settings import read
from mantler.cli.terminal import note, print_json, print_table
from mantler.config import OperatorSettings
from mantler.messages import ModelState

if TYPE_CHECKING:
    from mantler.mesh.status import MachineStatus

WAIT_POLL_S = 0.5
QUIET_POLLS = 2
"""In a row: a request is not counted for a moment, between its arrival and its place in the queue."""


@click.command(cls=Command)
@json_option
@operator_options
def machines(json: bool, flags: dict[str, object]) -> None:
    """List the machines of a mesh, with what they serve and how busy they are.

    A machine is online, draining (it takes no new requests), broken (too many requests failed there, so it gets few)
    or offline. A facade remembers those that went offline lately.

    \b
    Examples:
      mantler machines
      mantler machines --json | jq -r '.[] | select(.state == "online") | .id'
      MANTLER_OPERATOR_TOKEN=mo_live_… mantler machines --grpc web.lan:50050
    """
    settings = read(OperatorSettings, flags)
    found = run_operation(list_machines(settings))
    if json:
        print_json([_as_json(status) for status in found])
    elif found:
        headers = ("id", "address", "state", "models", "devices", "running", "queued", "tokens", "started (UTC)")
        print_table(headers, [_row(status) for status in found])
    else:
        note(
            f"No machines. `mantler runtime --mesh {settings.grpc}` with a token of `mantler tokens create` makes one "
            "join; a facade's --machines names those that it dials."
        )


@click.command(cls=Command)
@click.argument("machine")
@option("--undo", env="MANTLER_DRAIN_UNDO", help="Let requests come again.", is_flag=True)
@option("--wait", env="MANTLER_DRAIN_WAIT", help="Return once nothing runs there any more.", is_flag=True)
@operator_options
def drain(machine: str, undo: bool, wait: bool, flags: dict[str, object]) -> None:
    """Take a machine out of service, or back into it.

    It gets no new requests, and running ones finish there. Its models stay in memory. It stays so until --undo, or
    until its runtime starts again.

    \b
    Examples:
      mantler drain gpu1:50051 --wait && ssh gpu1 sudo reboot
      mantler drain gpu1:50051 --undo
    """
    if undo and wait:
        raise BadUsage("--wait: there is nothing to wait for with --undo")
    settings = read(OperatorSettings, flags)
    run_operation(_drain(settings, machine, draining=not undo))
    if undo:
        note(f"{machine} takes requests again.")
        return
    note(f"{machine} takes no new requests.")
    if wait:
        run_operation(_until_quiet(settings, machine))
        note(f"Nothing runs on {machine}.")


async def list_machines(settings: OperatorSettings) -> list[MachineStatus]:
    """Every machine of the mesh, ordered by id. Raises what :func:`operating` and its client raise."""
    async with operating(settings) as client:
        return await client.machines()


def state_of(status: MachineStatus) -> str:
    """In one word, what matters most."""
    if not status.online:
        return "offline"
    if status.broken:
        return "broken"
    return "draining" if status.info.draining else "online"


def address_of(status: MachineStatus) -> str:
    """Where the facade reaches it."""
    return status.info.address or "tunnel"


async def _drain(settings: OperatorSettings, machine: str, *, draining: bool) -> None:
    async with operating(settings) as client:
        await client.drain(machine, draining=draining)


async def _until_quiet(settings: OperatorSettings, machine: str) -> None:
    """Returns once nothing has run for a while. The time is bounded by what the machine still has."""
    told, quiet = -1, 0
    async with operating(settings) as client:
        while quiet < QUIET_POLLS:
            status = next((each for each in await client.machines() if each.info.id == machine), None)
            if status is None or not status.online:
                raise CliError(
                    f"{machine} went offline", hint="what ran there goes on elsewhere where that is possible"
                )
            if not status.info.draining:
                raise CliError(
                    f"{machine} is in service again", hint="somebody has undone the draining, or it started anew"
                )
            left = _running(status) + _queued(status)
            if left and left != told:
                note(f"{left} requests still run or wait there.")
            told, quiet = left, 0 if left else quiet + 1
            await asyncio.sleep(WAIT_POLL_S)


def _running(status: MachineStatus) -> int:
    return sum(load.running for load in status.report.models) if status.report else 0


def _queued(status: MachineStatus) -> int:
    return sum(load.queued for load in status.report.models) if status.report else 0


def _serving(status: MachineStatus) -> list[str]:
    return [model.id for model in status.info.models if model.state is ModelState.READY]


def _devices(status: MachineStatus) -> list[str]:
    """What its models run on."""
    return sorted({model.deployment.device for model in status.info.models if model.deployment is not None})


def _as_json(status: MachineStatus) -> dict[str, object]:
    return {
        "id": status.info.id,
        "address": status.info.address or None,
        "state": state_of(status),
        "models": _serving(status),
        "devices": _devices(status),
        "running": _running(status),
        "queued": _queued(status),
        "held_tokens": status.report.running_tokens if status.report else 0,
        "own_tokens": status.own_tokens,
        "started_unix_s": status.info.epoch / 1e9,
    }


def _row(status: MachineStatus) -> tuple[str, ...]:
    busy = ("", "", "")
    if status.online and status.report:
        busy = (str(_running(status)), str(_queued(status)), str(status.report.running_tokens))
    return (
        status.info.id,
        address_of(status),
        state_of(status),
        ",".join(_serving(status)),
        ",".join(_devices(status)),
        *busy,
        show_time(status.info.epoch // 10**9),
    )
