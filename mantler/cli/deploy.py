"""``mantler deploy`` and ``mantler undeploy``: what the machines of a mesh serve."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from mantler.cli.commands import Command
from mantler.cli.errors import BadUsage, CliError
from mantler.cli.operator import failure, operating, operator_options, run_operation
from mantler.cli.options import option
from mantler.cli.settings import read
from mantler.cli.terminal import note
from mantler.config import OperatorSettings
from mantler.errors import MantlerError
from mantler.messages import LoadStage, ModelState

if TYPE_CHECKING:
    from mantler.admin import AdminClient
    from mantler.cli.progress import LoadBars


def _machine_options(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``--machine`` and ``--all``; the arguments are ``machines`` and ``everywhere``."""
    machine = option(
        "--machine",
        "machines",
        env=f"MANTLER_{command}_MACHINE",
        help="Id of a machine, as `mantler machines` shows it; may be given several times.",
        multiple=True,
        metavar="ID",
    )
    everywhere = option(
        "--all", "everywhere", env=f"MANTLER_{command}_ALL", help="On all that are online.", is_flag=True
    )
    return lambda function: machine(everywhere(function))


Failed = dict[str, CliError]
"""What went wrong, by machine."""

_IN_MEMORY = (ModelState.READY, ModelState.FAILED)


@click.command(cls=Command)
@click.argument("model")
@_machine_options("DEPLOY")
@option(
    "--no-pull",
    env="MANTLER_DEPLOY_NO_PULL",
    help="Only where the model is stored: fetch and convert nothing.",
    is_flag=True,
)
@operator_options
def deploy(model: str, machines: tuple[str, ...], everywhere: bool, no_pull: bool, flags: dict[str, object]) -> None:
    """Bring a model into memory on machines of a mesh.

    A machine that does not have the model fetches and converts it, if Mantler knows it; others need `mantler pull` on
    the machine. Where this command is interrupted, the machines go on.

    \b
    Examples:
      mantler deploy smollm2:135m --machine gpu1:50051 --machine gpu2:50051
      mantler deploy smollm2:135m --all
    """
    settings = read(OperatorSettings, flags)
    _check(machines, everywhere)
    failed = run_operation(_deploy(settings, model, list(dict.fromkeys(machines)), pull=not no_pull))
    if failed:
        raise _together(failed)


@click.command(cls=Command)
@click.argument("model")
@_machine_options("UNDEPLOY")
@operator_options
def undeploy(model: str, machines: tuple[str, ...], everywhere: bool, flags: dict[str, object]) -> None:
    """Take a model out of machines' memory.

    It gets no new requests there; running ones may finish, for as long as the machine's drain_timeout_s allows. The
    model stays in the machine's store.

    \b
    Examples:
      mantler undeploy smollm2:135m --machine gpu2:50051
    """
    settings = read(OperatorSettings, flags)
    _check(machines, everywhere)
    failed = run_operation(_undeploy(settings, model, list(dict.fromkeys(machines))))
    if failed:
        raise _together(failed)


async def _deploy(settings: OperatorSettings, model: str, machines: Sequence[str], *, pull: bool) -> Failed:
    from mantler.cli.progress import LoadBars

    async with operating(settings) as client:
        targets = machines or await _online(client)
        with LoadBars() as bars:
            return await _each(targets, lambda machine: _load(client, bars, machine, model, pull=pull))


async def _undeploy(settings: OperatorSettings, model: str, machines: Sequence[str]) -> Failed:
    async with operating(settings) as client:

        async def unload(machine: str) -> None:
            await client.undeploy(machine, model)
            note(f"{machine} does not serve {model} any more.")

        return await _each(machines or await _serving(client, model), unload)


async def _load(client: AdminClient, bars: LoadBars, machine: str, model: str, *, pull: bool) -> None:
    bar = bars.add(f"{model} on {machine}")
    try:
        async with aclosing(client.deploy(machine, model, pull=pull)) as reports:
            async for report in reports:
                if report.stage is not LoadStage.READY:
                    bar.show(report)
    finally:
        bar.end()
    bars.note(f"{machine} serves {model}.")


async def _each(machines: Sequence[str], work: Callable[[str], Awaitable[None]]) -> Failed:
    """Works on all of them at once. One that fails does not stop the others."""
    from mantler.admin import NoFacadeError

    failed: Failed = {}

    async def attempt(machine: str) -> None:
        try:
            await work(machine)
        except (MantlerError, NoFacadeError) as error:
            failed[machine] = failure(error)

    async with asyncio.TaskGroup() as group:
        for machine in machines:
            group.create_task(attempt(machine))
    return failed


async def _online(client: AdminClient) -> list[str]:
    found = [status.info.id for status in await client.machines() if status.online]
    if not found:
        raise CliError("no machine is online", hint="`mantler machines` shows those that went offline lately")
    return found


async def _serving(client: AdminClient, model: str) -> list[str]:
    found = [
        status.info.id
        for status in await client.machines()
        if status.online and any(each.id == model and each.state in _IN_MEMORY for each in status.info.models)
    ]
    if not found:
        raise CliError(f"no machine has {model} in memory", hint="`mantler mantles` shows what is deployed")
    return found


def _check(machines: Sequence[str], everywhere: bool) -> None:
    if everywhere and machines:
        raise BadUsage("--all: means every machine; leave out --machine")
    if not everywhere and not machines:
        raise BadUsage("--machine: say on which machine", hint="`mantler machines` lists them; --all means every one")


def _together(failed: Failed) -> CliError:
    """One error, of one machine or of several."""
    if len(failed) == 1:
        [(machine, error)] = failed.items()
        return error if machine in error.message else CliError(f"{machine}: {error.message}", hint=error.hint)
    lines = tuple(f"{machine}: {error.message}" for machine, error in sorted(failed.items()))
    return CliError(f"{len(failed)} machines failed", hint="`mantler mantles` shows what is deployed", details=lines)
