"""Processes that a benchmark starts: always ended, with all that they have started, and watched for their memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from mantler.cli import ports
from mantler.config import split_address

STOP_S = 45.0
START_S = 300.0
_POLL_S = 0.1
_KILLED_S = 10.0
"""What is killed and not gone by then waits for a device."""
_SAMPLE_S = 0.2
_TAIL_LINES = 20


class StartError(Exception):
    """A server did not start. The message says why, in a sentence."""


@contextlib.contextmanager
def child(
    command: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    piped: bool = False,
    stop_s: float = STOP_S,
) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, so that Ctrl-C reaches only us; it is ended with SIGTERM, or else killed.

    Args:
        log: takes what it prints, behind what is there.
        piped: its standard input and output are pipes; only its standard error goes to ``log``.

    Raises:
        StartError: the program cannot be run.
    """
    with log.open("a", encoding="utf-8") as output:
        try:
            process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else output,
                stderr=output,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            raise StartError(f"{command[0]} cannot be run: {error.strerror}.") from error
    with process:
        try:
            yield process
        finally:
            _end(process, stop_s)


def _end(process: subprocess.Popen[str], stop_s: float) -> None:
    """Whatever happens here, Ctrl-C included, nothing of the process is left."""
    below = tree(process.pid)[1:]
    try:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(stop_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for member in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
        psutil.wait_procs(below, _KILLED_S)


def tree(pid: int) -> list[psutil.Process]:
    """The process ``pid`` and all below it; none where it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def rss_bytes(processes: Sequence[psutil.Process]) -> int:
    """Resident memory of ``processes`` together. One that has ended has none."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


class PeakMemory:
    """Samples the memory of a process and all below it, five times a second, for as long as its block lasts."""

    def __init__(self, pid: int) -> None:
        # Looking for children takes far longer than reading their memory: servers have theirs from the start on.
        self._processes = tree(pid)
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            last = self._done.wait(_SAMPLE_S)
            self.bytes = max(self.bytes, rss_bytes(self._processes))
            if last:
                return


def wait_until_served(
    process: subprocess.Popen[str],
    log: Path,
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    holds: str = "",
    timeout_s: float = START_S,
) -> None:
    """Returns when ``url`` answers 200 with a body that ``holds`` a text. Raises :class:`StartError`."""
    deadline = time.monotonic() + timeout_s
    while not serves(url, headers or {}, holds):
        if process.poll() is not None:
            raise StartError(f"it ended with {process.returncode}:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise StartError(f"it did not serve within {timeout_s:g} s:\n{tail(log)}")
        time.sleep(_POLL_S)


def serves(url: str, headers: Mapping[str, str], holds: str) -> bool:
    """Whether ``url`` answers 200 with a body that ``holds`` a text."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers)), timeout=5) as response:
            return bool(response.status == 200 and holds.encode() in response.read())
    except (urllib.error.URLError, OSError):
        return False


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])


def free_port() -> int:
    """A port that nobody listens on now."""
    return split_address(ports.claim("127.0.0.1:0", "--http"))[1]
