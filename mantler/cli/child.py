"""A child process: its output, line by line, and its end.

A child's standard input is a pipe that nobody writes to. When this process goes away, however it dies, the
kernel closes the pipe, and the child, started with ``--exit-with-stdin`` (:mod:`mantler.cli.lifeline`), stops.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence

TAIL_LINES = 20
MAX_LINE_BYTES = 16 * 1024
_READ_BYTES = 64 * 1024
_LAST_OUTPUT_S = 1.0
"""How long to wait for the end of a dead child's output, which its own children may hold open."""

Echo = Callable[[str, str], None]
"""Takes a child's name and a line of its output."""


class Child:
    """A running child process. :meth:`spawn` makes one."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, echo: Echo) -> None:
        self.name = name
        self._process = process
        self._echo = echo
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.ended = asyncio.create_task(self._end(), name=f"end of {name}")
        """Done when the process is dead and its output read; the result is its return code."""

    @classmethod
    async def spawn(cls, name: str, command: Sequence[str], echo: Echo) -> Child:
        """Starts ``command``. Raises ``OSError``.

        The child gets a session of its own: a Ctrl-C in the terminal reaches only us, and we choose the order.
        """
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        return cls(name, process, echo)

    @property
    def pid(self) -> int:
        """Its process id, which is also its session's."""
        return self._process.pid

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines of its output."""
        return tuple(self._tail)

    async def stop(self, timeout_s: float) -> bool:
        """SIGTERM, and SIGKILL if it lives longer than ``timeout_s``. Returns whether it stopped by itself."""
        if not self.ended.done():
            self._signal(signal.SIGTERM)
            await asyncio.wait({self.ended}, timeout=timeout_s)
        if self.ended.done():
            return True
        self.kill()
        await asyncio.wait({self.ended})
        return False

    def kill(self) -> None:
        """SIGKILL to it and to what it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # nobody of it is left

    def _signal(self, number: signal.Signals) -> None:
        try:
            self._process.send_signal(number)
        except ProcessLookupError:
            return  # it died a moment ago

    async def _end(self) -> int:
        output = asyncio.create_task(self._read_output())
        returncode = await self._process.wait()
        try:
            await asyncio.wait({output}, timeout=_LAST_OUTPUT_S)
        finally:
            output.cancel()
        return returncode

    async def _read_output(self) -> None:
        stream = self._process.stdout
        if stream is None:
            raise AssertionError("spawn asked for a pipe")
        rest = b""
        while chunk := await stream.read(_READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._take(line)
        if rest:
            self._take(rest)

    def _take(self, line: bytes) -> None:
        text = line[:MAX_LINE_BYTES].decode(errors="replace").rstrip()
        self._tail.append(text)
        self._echo(self.name, text)


def describe_exit(returncode: int) -> str:
    """``exited with code 3``, or ``was killed by SIGKILL``."""
    if returncode >= 0:
        return f"exited with code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"
