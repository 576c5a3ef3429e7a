"""``mantler up`` when things go wrong around it."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.processes import Process, children

pytestmark = [pytest.mark.e2e, pytest.mark.model]

UP = ["up", "--http", "127.0.0.1:0", "--runtime", "127.0.0.1:0"]
WAIT_S = 30


def test_sigkill_leaves_no_process(home_with_model: Callable[[], Path]) -> None:
    process = Process([*UP, "--kv-memory-mb", "1000"], home_with_model())
    try:
        process.wait_for("Ctrl-C stops it")
        ends = [os.pidfd_open(pid) for pid in children(process.pid).values()]
    finally:
        process.signal(signal.SIGKILL)
        process.exit_code()
    assert len(ends) == 2
    for end in ends:
        assert select.select([end], [], [], WAIT_S)[0], "a child lives on"
        os.close(end)


def test_a_runtime_that_cannot_start_is_an_error_with_its_last_words(home_with_model: Callable[[], Path]) -> None:
    process = Process([*UP, "--kv-memory-mb", "1"], home_with_model())
    assert process.exit_code() == 1
    assert "error: the runtime exited with code 1" in process.text
    assert "does not fit" in process.text
    assert "hint: " in process.text
    assert "Traceback" not in process.text
