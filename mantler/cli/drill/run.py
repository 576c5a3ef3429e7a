"""A whole drill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from mantler.cli.drill.machines import Mesh
from mantler.cli.drill.schedule import Fault, Harm, schedule
from mantler.cli.drill.traffic import REQUESTS, body, keep_asking, listen
from mantler.cli.drill.verdict import Suffered, Verdict, verdict
from mantler.cli.errors import CliError
from mantler.cli.options import GRPC_FIELDS, as_arguments
from mantler.config import FacadeSettings, GrpcSettings
from mantler.security.files import TlsFiles, https_files
from mantler.security.https import pinned_context
from mantler.security.transport import Security
from mantler.tenancy.keys import mint_key
from mantler.tenancy.store import KeyStore

_WARM_UPS = 4
"""Reference answers that are asked for at the same time."""


@dataclass(frozen=True, slots=True)
class Drill:
    """What is done."""

    model: str
    machines: int = 3
    streams: int = 24
    """That run at the same time."""
    seconds: float = 30.0
    every_s: float = 5.0
    """A fault comes each time."""
    harms: Sequence[Harm] = tuple(Harm)
    max_tokens: int = 60
    seed: int = 1


async def run(
    drill: Drill, runtime_arguments: Sequence[str], home: Path, tell: Callable[[str], None], grpc: GrpcSettings
) -> Verdict:
    """Starts machines and a facade, breaks them and stops them.

    Args:
        runtime_arguments: of ``mantler runtime``, but for its address.
        home: an empty folder for the facade.
        tell: takes a line about what is going on.
        grpc: what the runtimes read as well.
    """
    settings = FacadeSettings(home=home)
    async with await KeyStore.open(settings.database_url) as keys:
        key = mint_key()
        await keys.ensure(key)
    faults = schedule(
        machines=drill.machines, seconds=drill.seconds, every_s=drill.every_s, harms=drill.harms, seed=drill.seed
    )
    given = grpc.model_dump(include=set(GRPC_FIELDS), exclude_defaults=True)
    facade_arguments = ["--home", str(home), *as_arguments(given, FacadeSettings)]
    tell(f"Starting {drill.machines} runtimes and a facade.")
    https = https_files(settings)
    async with (
        Mesh(drill.machines, runtime_arguments, facade_arguments, Security.load(grpc), https) as mesh,
        _session(key, https) as http,
    ):
        url = f"{'https' if https else 'http'}://{mesh.http}/v1/chat/completions"
        return await _break(drill, mesh, http, url, faults, tell)


def _session(key: str, https: TlsFiles) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"},
        timeout=aiohttp.ClientTimeout(total=600),
        connector=aiohttp.TCPConnector(limit=0, ssl=pinned_context(https) if https else True),
    )


async def _break(
    drill: Drill,
    mesh: Mesh,
    http: aiohttp.ClientSession,
    url: str,
    faults: Sequence[Fault],
    tell: Callable[[str], None],
) -> Verdict:
    expected = await _references(drill, http, url)
    tell(f"{drill.streams} streams for {drill.seconds:g} s, {len(faults)} faults.")
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        clients = [
            group.create_task(
                keep_asking(
                    http, url, drill.model, until_s=began_s + drill.seconds, max_tokens=drill.max_tokens, first=i
                )
            )
            for i in range(drill.streams)
        ]
        harmed = [group.create_task(_harm(mesh, fault, began_s, tell)) for fault in faults]
    streams = [heard for client in clients for heard in client.result()]
    suffered = [task.result() for task in harmed]
    return verdict(streams, expected, resumed=mesh.resumed, faults=suffered, changes=mesh.changes)


async def _references(drill: Drill, http: aiohttp.ClientSession, url: str) -> Mapping[int, Sequence[str]]:
    """The undisturbed answer to each request."""
    expected: dict[int, Sequence[str]] = {}
    numbers = iter(range(REQUESTS))

    async def ask() -> None:
        for number in numbers:
            heard = await listen(http, url, number, body(number, drill.model, drill.max_tokens))
            if not heard.done:
                raise CliError(f"an undisturbed request failed: {heard.error}")
            expected[number] = heard.tokens

    await asyncio.gather(*(ask() for _ in range(_WARM_UPS)))
    return expected


async def _harm(mesh: Mesh, fault: Fault, began_s: float, tell: Callable[[str], None]) -> Suffered:
    await asyncio.sleep(began_s + fault.at_s - time.monotonic())
    tell(f"{fault.at_s:6.1f} s: {fault.harm.value} machine-{fault.machine}")
    machine = mesh.machines[fault.machine]
    harmed_s = time.monotonic()
    await machine.suffer(fault)
    return Suffered(machine.name, harmed_s, time.monotonic())
