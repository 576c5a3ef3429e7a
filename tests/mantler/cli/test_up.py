"""``mantler up`` without a model: what it refuses, what it prints, and what signals do to it."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mantler.cli.up import Addresses, banner
from tests.mantler.cli.conftest import Mantler

WAIT_S = 20

SUPERVISED = textwrap.dedent(
    """
    import asyncio, pathlib, sys
    from mantler.cli.supervisor import Limits, Service, Supervisor
    from mantler.cli.up import supervise

    folder = pathlib.Path(sys.argv[1])

    def service(name):
        async def ready():
            return (folder / name).exists()
        return Service(name, (sys.executable, "-c", sys.argv[2], name, str(folder)), ready)

    async def serving():
        print("serving", flush=True)

    supervisor = Supervisor(
        [service("runtime"), service("facade")], report=print, echo=lambda *line: print(*line, flush=True),
        limits=Limits(stop_timeout_s=60),
    )
    sys.exit(asyncio.run(supervise(supervisor, serving)))
    """
)
CHILD = textwrap.dedent(
    """
    import pathlib, signal, sys
    def end(*_):
        print("asked", flush=True)
        if {polite}: sys.exit(0)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
    (pathlib.Path(sys.argv[2]) / sys.argv[1]).touch()
    while True: signal.pause()
    """
)


def supervised(folder: Path, *, polite: bool, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """A supervisor of two tiny children, as a process that says when it serves."""
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, str(folder), CHILD.format(polite=polite)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "serving\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_facade_and_then_the_runtime(tmp_path: Path, number: signal.Signals) -> None:
    process = supervised(tmp_path, polite=True)
    process.send_signal(number)
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert out == "facade asked\nruntime asked\n"
    assert err.startswith("Stopping: ")
    assert err.endswith("\nMantler has stopped.\n")


def test_closing_the_terminal_stops_everything(tmp_path: Path) -> None:
    terminal, stderr = pty.openpty()
    process = supervised(tmp_path, polite=True, stderr=stderr)
    os.close(stderr)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert out == "facade asked\nruntime asked\n"


def test_a_second_ctrl_c_ends_everything_at_once(tmp_path: Path) -> None:
    process = supervised(tmp_path, polite=False)
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "facade asked\n"
    process.send_signal(signal.SIGTERM)  # asks for what happens already
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert "runtime asked" not in out


def test_a_busy_port_is_an_error_before_anything_is_fetched(mantler: Mantler, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for flag, other in (("--http", "--runtime"), ("--runtime", "--http")):
            result = mantler("up", flag, address, other, "127.0.0.1:0")
            assert result.code == 1
            assert result.err.startswith(f"error: {flag}: {address} is in use by another process\nhint: ")
    assert not home.exists()


def test_both_cannot_have_the_same_port(mantler: Mantler) -> None:
    result = mantler("up", "--http", "127.0.0.1:8080", "--runtime", "127.0.0.1:8080")
    assert result.code == 2
    assert result.err.startswith("error: --http and --runtime: both are 127.0.0.1:8080\n")


def test_a_model_that_does_not_exist_is_an_error(mantler: Mantler) -> None:
    result = mantler("up", "--http", "127.0.0.1:0", "--runtime", "127.0.0.1:0", "--model", "nonsense")
    assert result.code == 1
    assert "error: No model is called 'nonsense'\nhint: " in result.err


def test_the_banner_has_a_curl_that_works_as_it_stands() -> None:
    text = banner(Addresses("0.0.0.0:8080", "[::]:50051", "[::]:50050"), ["smollm2:135m"], "mk_live_x", 2.5)
    assert "curl http://127.0.0.1:8080/v1/chat/completions" in text
    assert '"Authorization: Bearer mk_live_x"' in text
    assert '"model": "smollm2:135m"' in text
    assert "gRPC  [::1]:50050" in text
    assert "shown this once" in text


def test_later_banners_show_no_key() -> None:
    text = banner(Addresses("127.0.0.1:8080", "127.0.0.1:50051", "127.0.0.1:50050"), ["a:1", "b:2"], None, 2.5)
    assert "a:1, b:2" in text
    assert "Bearer $MANTLER_KEY" in text
    assert "shown this once" not in text
    assert "key   shown at the first start; `mantler keys create` makes another" in text
    text = banner(Addresses("127.0.0.1:8080", "127.0.0.1:50051", "127.0.0.1:50050"), [], None, 2.5, bootstrap=True)
    assert "key   the bootstrap key of your settings; `mantler keys create` makes another" in text
    assert "serves no model yet" in text
