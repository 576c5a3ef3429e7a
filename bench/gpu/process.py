"""Runs what is measured as a process of its own, whose memory is free afterwards, and hears what it says."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from bench.gpu.said import Said, heard
from bench.process import StartError, child, tail


def listen(
    command: Sequence[str], log: Path, *, env: Mapping[str, str], timeout_s: float
) -> Generator[Said, None, None]:
    """Starts ``command`` and yields what it says, until it ends.

    Args:
        log: takes its standard error.
        timeout_s: after which it is killed.

    Raises :class:`~bench.process.StartError` where it cannot be run, fails or takes too long.
    """
    with child(command, log, env=env, piped=True) as process:
        assert process.stdout is not None
        late = threading.Event()

        def kill() -> None:
            late.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(timeout_s, kill)
        timer.start()
        try:
            for line in process.stdout:
                if (said := heard(line)) is not None:
                    yield said
            status = process.wait()
        finally:
            timer.cancel()
    if late.is_set():
        raise StartError(f"it took more than {timeout_s:g} s:\n{tail(log)}")
    if status:
        raise StartError(f"it ended with {status}:\n{tail(log)}")
