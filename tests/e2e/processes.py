"""Real processes for end-to-end tests: the ``mantler`` command, as a user would start it."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mantler.cli import ports
from mantler.config import split_address

KEY = "mk_live_endtoendtestsusethiskeyonly0"
START_S = 60.0
STOP_S = 45.0


def free_port() -> int:
    """A port that nobody listens on now. For processes that must find each other, which port 0 does not allow."""
    return split_address(ports.claim("127.0.0.1:0", "--http"))[1]


class Process:
    """A running ``mantler`` command whose output lines can be waited for.

    Args:
        arguments: after ``mantler``.
        home: its ``MANTLER_HOME``.
        env: further variables.
        within: a command that runs it, such as one that enters a network namespace.
    """

    def __init__(
        self, arguments: list[str], home: Path, env: dict[str, str] | None = None, within: tuple[str, ...] = ()
    ) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MANTLER_")}
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.output: list[str] = []
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", "mantler", *arguments],
            env={
                **clean,
                "MANTLER_HOME": str(home),
                "MANTLER_GRPC": "127.0.0.1:0",  # several facades run at a time
                "PYTHONUNBUFFERED": "1",
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, pattern: str, timeout_s: float = START_S) -> re.Match[str]:
        """The first line not seen yet that matches. Fails with the output where none comes."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line like {pattern!r} within {timeout_s} s:\n{self.text}") from None
            if line is None:
                raise AssertionError(f"ended with {self._process.wait()} before a line like {pattern!r}:\n{self.text}")
            if (match := re.search(pattern, line)) is not None:
                return match

    @property
    def text(self) -> str:
        """Everything printed so far."""
        return "".join(self.output)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.exit_code()

    def exit_code(self) -> int:
        try:
            code = self._process.wait(STOP_S)
        finally:
            self._process.kill()
            self._reader.join(STOP_S)
            assert self._process.stdout is not None
            self._process.stdout.close()
        return code

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output.append(line)
            self._lines.put(line)
        self._lines.put(None)


@contextlib.contextmanager
def running(
    arguments: list[str], home: Path, env: dict[str, str] | None = None, within: tuple[str, ...] = ()
) -> Iterator[Process]:
    """A process that is stopped at the end, and must end with 0."""
    process = Process(arguments, home, env, within)
    try:
        yield process
    except BaseException:
        process.signal(signal.SIGTERM)
        process.exit_code()
        raise
    assert process.stop() == 0, process.text


def children(pid: int) -> dict[str, int]:
    """Process ids of ``mantler``'s children by command: ``runtime``, ``facade``."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        command = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        if "mantler" in command:
            found[command[command.index("mantler") + 1]] = int(child)
    return found
