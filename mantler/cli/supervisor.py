"""Starts a few processes, restarts those that die, and stops all of them.

``start`` fails when one of them cannot be started; after it, a process that dies is started again, after a delay
that grows (:mod:`mantler.cli.backoff`). ``stop`` ends them in the opposite order of the list, each within a bound.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from mantler.cli.backoff import Backoff, BackoffPolicy
from mantler.cli.child import Child, Echo, describe_exit

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Service:
    """A process to keep running."""

    name: str
    command: tuple[str, ...]
    ready: Callable[[], Awaitable[bool]]
    """Says whether it serves; answers within a second or so."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take."""

    start_timeout_s: float = 300.0
    stop_timeout_s: float = 35.0
    """Per process, from SIGTERM to SIGKILL."""
    backoff: BackoffPolicy = field(default_factory=BackoffPolicy)


class StartError(Exception):
    """A process could not be started.

    Args:
        name: of the service.
        reason: follows the name in a sentence.
        tail: the last lines of its output.
    """

    def __init__(self, name: str, reason: str, tail: tuple[str, ...] = ()) -> None:
        super().__init__(f"the {name} {reason}")
        self.name = name
        self.reason = reason
        self.tail = tail


class Supervisor:
    """Keeps services running; an async context manager that leaves no process behind.

    Args:
        services: in the order of starting them; they are stopped from the last to the first.
        report: takes a sentence about what happens to a service.
        echo: takes each line that a service prints.
        clock, sleep: seconds and waiting, replaced by tests.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        report: Callable[[str], None],
        echo: Echo,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._services = tuple(services)
        self._report = report
        self._echo = echo
        self._limits = limits or Limits()
        self._clock = clock
        self._sleep = sleep
        self._children: dict[str, Child] = {}

    async def __aenter__(self) -> Supervisor:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        if self._children:
            await asyncio.wait({child.ended for child in self._children.values()})

    def pid(self, name: str) -> int:
        """The process id of a service's latest process."""
        return self._children[name].pid

    async def start(self) -> None:
        """Starts all services at once and returns when all serve. Raises :class:`StartError` for the first failure."""
        try:
            async with asyncio.TaskGroup() as group:
                for service in self._services:
                    group.create_task(self._launch(service))
        except BaseExceptionGroup as errors:
            for error in errors.exceptions:
                if isinstance(error, StartError):
                    raise error from None
            raise

    async def keep(self) -> None:
        """Restarts services that die, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for service in self._services:
                group.create_task(self._keep(service))

    async def stop(self) -> None:
        """Ends the services one after the other. Neither ``start`` nor ``keep`` may be running."""
        for service in reversed(self._services):
            child = self._children.get(service.name)
            if child is None or child.ended.done():
                continue
            if not await child.stop(self._limits.stop_timeout_s):
                self._report(f"the {service.name} did not stop in time and was killed")

    def kill(self) -> None:
        """Ends all services at once, without asking them."""
        for child in self._children.values():
            if not child.ended.done():
                child.kill()

    async def _launch(self, service: Service) -> None:
        try:
            child = await Child.spawn(service.name, service.command, self._echo)
        except OSError as error:
            raise StartError(service.name, f"could not be started: {error.strerror}") from error
        self._children[service.name] = child
        timeout_s = self._limits.start_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._until_ready(service, child)
        except TimeoutError:
            await child.stop(self._limits.stop_timeout_s)
            raise StartError(service.name, f"did not serve within {timeout_s:g} s", child.tail) from None

    async def _until_ready(self, service: Service, child: Child) -> None:
        while True:
            ready = not child.ended.done() and await service.ready()
            if child.ended.done():
                raise StartError(service.name, describe_exit(child.ended.result()), child.tail)
            if ready:
                return
            await asyncio.wait({child.ended}, timeout=_POLL_S)

    async def _keep(self, service: Service) -> None:
        backoff = Backoff(self._limits.backoff)
        since_s = self._clock()
        while True:
            reason = describe_exit(await asyncio.shield(self._children[service.name].ended))
            served_s = self._clock() - since_s
            while reason:
                delay_s = backoff.after_exit(served_s)
                self._report(f"the {service.name} {reason}; it will be started again in {delay_s:g} s")
                await self._sleep(delay_s)
                try:
                    await self._launch(service)
                    reason = ""
                except StartError as error:
                    reason, served_s = error.reason, 0.0
            since_s = self._clock()
            self._report(f"the {service.name} serves again")
