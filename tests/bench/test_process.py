"""Processes of a benchmark end with it."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from bench.machine import described_cpu
from bench.process import PeakMemory, StartError, child, free_port, tree, wait_until_served

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_grandchildren_are_ended_too(tmp_path: Path) -> None:
    def interrupted() -> None:
        with child([sys.executable, "-c", PARENT], tmp_path / "log", piped=True) as process:
            assert process.stdout is not None
            found.extend([process.pid, int(process.stdout.readline())])
            assert {member.pid for member in tree(process.pid)} == set(found)
            raise KeyboardInterrupt

    found: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [pid for pid in found if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"] == []


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    with child([sys.executable, "-c", stubborn], tmp_path / "log", piped=True, stop_s=0.01) as process:
        assert process.stdout is not None
        process.stdout.readline()
    assert process.returncode == -9


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot be run"), child([str(tmp_path / "none")], tmp_path / "log"):
        pass


def test_a_server_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with child([sys.executable, "-c", "print('no memory'); raise SystemExit(3)"], log) as process:
        process.wait(30)
        with pytest.raises(StartError, match=r"(?s)ended with 3.*no memory"):
            wait_until_served(process, log, f"http://127.0.0.1:{free_port()}/health")


def test_a_server_that_takes_too_long(tmp_path: Path) -> None:
    log = tmp_path / "log"
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    with child(sleeping, log) as process, pytest.raises(StartError, match="did not serve within"):
        wait_until_served(process, log, f"http://127.0.0.1:{free_port()}/health", timeout_s=0.0)


def test_memory_is_that_of_all_processes(tmp_path: Path) -> None:
    with child([sys.executable, "-c", PARENT], tmp_path / "log", piped=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with PeakMemory(process.pid) as memory:
            parts = [member.memory_info().rss for member in tree(process.pid)]
    assert len(parts) == 2
    assert memory.bytes > max(parts)


def test_a_processor_is_described() -> None:
    text = "processor\t: 0\nmodel name\t: Fast 9000\nflags\t\t: fpu avx2 avx512f amx_int8\n"
    assert described_cpu(text) == "Fast 9000 (avx2, avx512f, amx_int8)"
