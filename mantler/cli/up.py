"""``mantler up``: a runtime and a facade in the foreground, from an empty folder to a working URL."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import click

from mantler.cli import keys, ports, probe, pull
from mantler.cli.commands import Command
from mantler.cli.errors import BadUsage, CliError
from mantler.cli.options import as_arguments, settings_options
from mantler.cli.settings import read
from mantler.cli.supervisor import Limits, Service, StartError, Supervisor
from mantler.cli.terminal import note, style
from mantler.config import FacadeSettings, RuntimeSettings, UpSettings, split_address
from mantler.security.files import TlsFiles, https_files

if TYPE_CHECKING:
    from mantler.security.transport import Security

EXIT_KILLED = 130
_QUESTION = {"role": "user", "content": "Why is the sky blue?"}
_STOP_MARGIN_S = 10.0
"""Time beyond the drain timeout before a process that does not stop is killed."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the two processes serve, and where others on this machine find them."""

    http: str
    runtime: str
    grpc: str
    https: bool = False

    @property
    def url(self) -> str:
        """The base URL of the REST API."""
        return f"{'https' if self.https else 'http'}://{ports.reachable(self.http)}"


@click.command(cls=Command)
@settings_options(RuntimeSettings, FacadeSettings, UpSettings)
def up(flags: dict[str, object]) -> None:
    """Serve models: REST outside, gRPC inside.

    Fetches missing models, starts a runtime and a facade, and restarts them if they die. The first start makes an
    API key and prints it once; MANTLER_BOOTSTRAP_KEY sets it instead. Ctrl-C stops everything, a second Ctrl-C at
    once.

    \b
    Examples:
      mantler up
      mantler up --http 0.0.0.0:8080 --model smollm2:135m
      MANTLER_BOOTSTRAP_KEY=mk_live_… mantler up
    """
    started_s = time.monotonic()
    runtime, facade, own = read(RuntimeSettings, flags), read(FacadeSettings, flags), read(UpSettings, flags)
    security, https = _checked(runtime, facade)
    _claim(facade, runtime)
    pull.ensure(runtime)
    addresses = replace(_claim(facade, runtime), https=bool(https))
    limits = Limits(own.start_timeout_s, max(runtime.drain_timeout_s, facade.drain_timeout_s) + _STOP_MARGIN_S)
    supervisor = Supervisor(
        _services(flags, addresses, security, https),
        report=_report,
        echo=_echo(runtime.log_format == "json"),
        limits=limits,
    )

    async def serving() -> None:
        key = None if facade.bootstrap_key else await keys.first_key(facade.database_url)
        took_s = time.monotonic() - started_s
        click.echo(banner(addresses, runtime.model, key, took_s, bootstrap=facade.bootstrap_key is not None))
        sys.stdout.flush()

    try:
        sys.exit(asyncio.run(supervise(supervisor, serving)))
    except StartError as error:
        raise CliError(
            str(error), hint="its last lines stand above; `mantler doctor` looks for causes", details=error.tail
        ) from error


async def supervise(supervisor: Supervisor, on_serving: Callable[[], Awaitable[None]]) -> int:
    """Runs until a signal asks for the end. Returns the exit code; raises :class:`StartError`."""
    stop = asyncio.Event()
    killed = False

    def asked(number: signal.Signals) -> None:
        nonlocal killed
        if not stop.is_set():
            stop.set()
            _tell("Stopping: running requests may finish. Ctrl-C once more stops at once.")
        elif number is signal.SIGINT:
            killed = True
            supervisor.kill()

    async def serve() -> None:
        await supervisor.start()
        await on_serving()
        await supervisor.keep()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked, number)
    async with supervisor:
        tasks = asyncio.create_task(serve()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                await tasks[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await supervisor.stop()
    _tell("Mantler has stopped.")
    return EXIT_KILLED if killed else 0


def banner(addresses: Addresses, models: list[str], key: str | None, took_s: float, *, bootstrap: bool = False) -> str:
    """What the terminal shows once everything serves. ``key`` is given only when it is new.

    ``bootstrap`` says that the settings hold one.
    """
    lines = [
        f"Mantler serves {', '.join(models) or 'no model yet'}, after {took_s:.1f} s.",
        "",
        f"  REST  {addresses.url}/v1",
        f"  gRPC  {ports.reachable(addresses.grpc)}",
    ]
    if key is not None:
        lines += [f"  key   {key}", "        It is shown this once. `mantler keys create` makes more."]
    else:
        known = "the bootstrap key of your settings" if bootstrap else "shown at the first start"
        lines += [f"  key   {known}; `mantler keys create` makes another"]
    asked = {"model": models[0] if models else "MODEL", "temperature": 0, "messages": [_QUESTION]}
    body = json.dumps(asked)
    lines += [
        "",
        f"  curl {addresses.url}/v1/chat/completions \\",
        f'    -H "Authorization: Bearer {key or "$MANTLER_KEY"}" \\',
        '    -H "Content-Type: application/json" \\',
        f"    -d '{body}'",
        "",
        "Ctrl-C stops it.",
    ]
    return "\n".join(lines)


def _claim(facade: FacadeSettings, runtime: RuntimeSettings) -> Addresses:
    wanted = {"--http": facade.http, "--grpc": facade.grpc, "--runtime": runtime.runtime}
    for (flag, address), (other, same) in itertools.combinations(wanted.items(), 2):
        if address == same and split_address(address)[1] != 0:
            raise BadUsage(f"{flag} and {other}: both are {address}", hint="each needs a port of its own")
    http, grpc, own = (ports.claim(address, flag) for flag, address in wanted.items())
    return Addresses(http=http, runtime=own, grpc=grpc)


def _checked(runtime: RuntimeSettings, facade: FacadeSettings) -> tuple[Security, TlsFiles]:
    """What the probes need. Raises ``SecurityError`` for what either process would refuse, before anything starts."""
    from mantler.security.transport import Security

    security, https = Security.load(runtime), https_files(facade)
    https.read()
    security.check_listening([runtime.runtime, facade.grpc])
    security.check_dialing([ports.reachable(runtime.runtime), *facade.machines])
    security.check_own_host(ports.reachable(runtime.runtime))
    return security, https


def _services(flags: dict[str, object], addresses: Addresses, security: Security, https: TlsFiles) -> list[Service]:
    mantler = (sys.executable, "-m", "mantler")
    runtime_at = ports.reachable(addresses.runtime)
    runtime_flags = as_arguments({**flags, "runtime": addresses.runtime}, RuntimeSettings)
    facade_flags = as_arguments(
        {**flags, "runtime": runtime_at, "http": addresses.http, "grpc": addresses.grpc}, FacadeSettings
    )
    return [
        Service(
            "runtime",
            (*mantler, "runtime", *runtime_flags, "--exit-with-stdin"),
            partial(probe.runtime_serves, runtime_at, security),
        ),
        Service(
            "facade",
            (*mantler, "facade", *facade_flags, "--exit-with-stdin"),
            partial(probe.facade_serves, ports.reachable(addresses.http), https),
        ),
    ]


def _tell(text: str) -> None:
    """A note for whoever still reads: a terminal that was closed must not keep us from stopping what runs in it."""
    with suppress(OSError):
        note(text)


def _report(text: str) -> None:
    _tell(f"{style('mantler', 'yellow')} | {text}")


def _echo(raw: bool) -> Callable[[str, str], None]:
    """Prints a child's line; ``raw`` without its name, so that JSON lines stay JSON."""

    def echo(name: str, line: str) -> None:
        _tell(line if raw else f"{style(f'{name:7}', dim=True)} | {line}")

    return echo
