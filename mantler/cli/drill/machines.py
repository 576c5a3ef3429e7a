"""The processes of a drill: runtimes that can be broken, and a facade before them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Self

from mantler.cli import ports
from mantler.cli.child import Child
from mantler.cli.drill.cable import Cable
from mantler.cli.drill.schedule import Fault, Harm
from mantler.cli.drill.verdict import Change
from mantler.cli.errors import CliError
from mantler.cli.probe import facade_serves, runtime_serves
from mantler.security.files import TlsFiles
from mantler.security.transport import Security

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
_POLL_S = 0.1
_KEPT_ELSEWHERE = "goes on elsewhere"
_CHANGE = re.compile(r"machine (machine-\d+) is (online|offline)")

Echo = Callable[[str, str], None]


class Machine:
    """A runtime on this host. Start it inside its ``cable``."""

    def __init__(self, number: int, arguments: Sequence[str], security: Security, echo: Echo) -> None:
        self.address = ports.claim("127.0.0.1:0", "--machines")
        self.cable = Cable(self.address)
        self.name = f"machine-{number}"
        self._arguments = arguments
        self._security = security
        self._echo = echo
        self._child: Child | None = None

    async def start(self) -> None:
        """Returns once it serves."""
        command = [sys.executable, "-m", "mantler", "runtime", "--runtime", self.address, "--machine-id", self.name]
        self._child = await Child.spawn(self.name, [*command, *self._arguments, "--exit-with-stdin"], self._echo)
        await _until(partial(runtime_serves, self.address, self._security), self._child)

    async def suffer(self, fault: Fault) -> None:
        """Does the harm, and makes it good when its time is over."""
        child = self._child
        if child is None:
            raise AssertionError("a machine is started before it is broken")
        match fault.harm:
            case Harm.KILL:
                child.kill()
                await child.ended
                await asyncio.sleep(fault.lasts_s)
                await self.start()
            case Harm.RESTART:
                await child.stop(STOP_TIMEOUT_S)
                await self.start()
            case Harm.FREEZE:
                os.kill(child.pid, signal.SIGSTOP)
                try:
                    await asyncio.sleep(fault.lasts_s)
                finally:
                    os.kill(child.pid, signal.SIGCONT)
            case Harm.PARTITION:
                self.cable.cut()
                try:
                    await asyncio.sleep(fault.lasts_s)
                finally:
                    self.cable.mend()

    async def stop(self) -> None:
        """Ends it, whatever state it is in."""
        if self._child is not None:
            self._child.kill()
            await self._child.ended


class Mesh:
    """Runtimes and a facade. Use as a context manager."""

    def __init__(
        self,
        machines: int,
        runtime_arguments: Sequence[str],
        facade_arguments: Sequence[str],
        security: Security,
        https: TlsFiles,
    ) -> None:
        self.http = ports.claim("127.0.0.1:0", "--http")
        self.machines = [Machine(i, runtime_arguments, security, self._note) for i in range(machines)]
        self.resumed = 0
        """Streams that the facade went on with elsewhere."""
        self.changes: list[Change] = []
        """What the facade said of machines."""
        self.log: list[str] = []
        """The last lines of all processes."""
        self._facade_arguments = facade_arguments
        self._https = https
        self._facade: Child | None = None
        self._cables = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            for machine in self.machines:
                await self._cables.enter_async_context(machine.cable)
            await asyncio.gather(*(machine.start() for machine in self.machines))
            addresses = [part for machine in self.machines for part in ("--machines", machine.cable.address)]
            command = [sys.executable, "-m", "mantler", "facade", "--http", self.http, "--log-format", "json"]
            command += ["--grpc", "127.0.0.1:0"]
            arguments = [*command, *addresses, *self._facade_arguments, "--exit-with-stdin"]
            self._facade = await Child.spawn("facade", arguments, self._note)
            await _until(partial(facade_serves, self.http, self._https), self._facade)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        if self._facade is not None:
            await self._facade.stop(STOP_TIMEOUT_S)
        await asyncio.gather(*(machine.stop() for machine in self.machines))
        await self._cables.aclose()

    def _note(self, name: str, line: str) -> None:
        self.resumed += name == "facade" and _KEPT_ELSEWHERE in line
        if name == "facade" and (change := _CHANGE.search(line)):
            self.changes.append(Change(time.monotonic(), change[1], online=change[2] == "online"))
        self.log.append(f"{name}: {line}")
        del self.log[:-100]


async def _until(serves: Callable[[], Awaitable[bool]], child: Child) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await serves():
                if child.ended.done():
                    raise CliError(f"the {child.name} ended at its start", details=child.tail)
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise CliError(f"the {child.name} did not serve within {START_TIMEOUT_S:g} s", details=child.tail) from None
