"""Ends this process when its standard input closes: the lifeline of a process that another one started.

A pipe is what works everywhere and leaves no gap. The kernel closes it however the parent dies, SIGKILL included,
and a child that comes up later sees the end of it then. ``PR_SET_PDEATHSIG`` knows Linux only, follows the thread
that forked instead of its process, and misses a parent that died before the call. And a closed pipe lets running
requests finish first, as SIGTERM does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable


def exit_with_stdin(grace_s: float) -> None:
    """Watches standard input from now on: at its end SIGTERM to ourselves, and the hard end ``grace_s`` later."""
    threading.Thread(target=_watch, args=(sys.stdin.fileno(), grace_s, os._exit), name="lifeline", daemon=True).start()


def _watch(descriptor: int, grace_s: float, exit_now: Callable[[int], object]) -> None:
    while _is_open(descriptor):
        pass  # what somebody writes there means nothing
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(grace_s)
    exit_now(1)


def _is_open(descriptor: int) -> bool:
    try:
        return bool(os.read(descriptor, 4096))
    except OSError:
        return False  # a terminal that was closed
