"""``mantler doctor`` and its checks."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mantler.cli import checks, ports
from mantler.cli.checks import Status
from mantler.cli.errors import CliError
from mantler.messages import Deployment, EngineProfile, StepProfile
from mantler.security.files import TlsFiles
from runtime_server import native
from tests.fake_runtime import FakeRuntime
from tests.mantler.cli.conftest import Mantler


@pytest.fixture(autouse=True)
def free_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses that nobody serves at."""
    monkeypatch.setenv("MANTLER_HTTP", ports.claim("127.0.0.1:0", "--http"))
    monkeypatch.setenv("MANTLER_RUNTIME", ports.claim("127.0.0.1:0", "--runtime"))


def findings(result: str) -> dict[str, list[dict[str, str]]]:
    """Findings by check."""
    by_check: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(result):
        by_check.setdefault(finding["check"], []).append(finding)
    return by_check


def test_a_fresh_machine_is_well(mantler: Mantler) -> None:
    result = mantler("doctor", "--json")
    assert result.code == 0, result.out
    found = findings(result.out)
    machine = {"mantler", "onnxruntime", "cpu", "operators", "memory"}
    assert set(found) == machine | {"device", "home", "models", "keys", "runtime", "facade"}
    assert "CPU" in found["onnxruntime"][0]["detail"]
    assert found["models"][-1]["status"] == "warn"
    assert "mantler pull smollm2:135m" in found["models"][-1]["hint"]
    for name, flag in (("runtime", "--runtime"), ("facade", "--http")):
        assert found[name][0]["detail"].startswith("not running; 127.0.0.1:")
        assert f"{flag} HOST:PORT, or {flag[2:]} in config.toml" in found[name][0]["hint"]


def test_people_get_lines_and_hints(mantler: Mantler) -> None:
    result = mantler("doctor")
    assert result.code == 0
    assert "warn  models       smollm2:135m is not stored\n" in result.out
    assert "hint: `mantler pull smollm2:135m`" in result.out


def test_the_operators_instruction_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "instruction_set", lambda: "avx2")
    (fast,) = checks.operators()
    assert (fast.status, fast.detail) == (Status.OK, "compiled for avx2")
    monkeypatch.setattr(native, "instruction_set", lambda: "baseline")
    (slow,) = checks.operators()
    assert slow.status is Status.WARN
    assert "AVX2" in str(slow.hint)


def test_operators_that_cannot_be_loaded_are_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "none.so")
    native.instruction_set.cache_clear()
    (finding,) = checks.operators()
    assert finding.status is Status.FAIL
    assert "have not been compiled" in finding.detail
    assert "--force-reinstall" in str(finding.hint)


def test_a_busy_port_is_broken(mantler: Mantler) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = mantler("doctor", "--http", address, "--json")
    assert result.code == 1
    facade = findings(result.out)["facade"][0]
    assert facade["status"] == "fail"
    assert f"{address} is in use by another process" in facade["detail"]


def test_a_bad_settings_file_is_broken(mantler: Mantler, home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text("max_batch = 0\n")
    result = mantler("doctor", "--json")
    assert result.code == 1
    assert "max_batch in" in findings(result.out)["settings"][0]["detail"]


def test_a_damaged_model_is_broken(mantler: Mantler, home: Path) -> None:
    folder = home / "models" / "smollm2" / "135m"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{")
    result = mantler("doctor", "--json")
    assert result.code == 1
    assert findings(result.out)["models"][-1]["status"] == "fail"


def test_a_broken_database_is_broken(mantler: Mantler, home: Path) -> None:
    home.mkdir()
    (home / "mantler.db").write_bytes(b"this is no database" * 100)
    result = mantler("doctor", "--json")
    assert result.code == 1
    assert "cannot be reached" in findings(result.out)["keys"][0]["detail"]


def test_a_home_that_is_a_file_is_broken(mantler: Mantler, home: Path) -> None:
    home.write_text("")
    result = mantler("doctor", "--json")
    assert result.code == 1
    assert findings(result.out)["home"][0]["status"] == "fail"


def test_little_memory_is_a_warning() -> None:
    (finding,) = checks.memory(lambda: 10**9)
    assert (finding.status, finding.detail) == (Status.WARN, "1.0 GB free")
    assert finding.hint


def test_a_service_that_serves_is_well() -> None:
    (finding,) = checks.service("runtime", "127.0.0.1:1", "--runtime", lambda: True)
    assert (finding.status, finding.detail) == (Status.OK, "serves at 127.0.0.1:1")


def test_a_port_of_nobody_is_claimed_and_port_0_becomes_one() -> None:
    address = ports.claim("127.0.0.1:0", "--http")
    assert not address.endswith(":0")
    # Not one that an outgoing connection might get before it is served at.
    assert int(address.rpartition(":")[2]) < 32_768
    assert ports.claim(address, "--http") == address


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_busy_port_names_the_flag_and_another_port(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CliError, match=rf"^--http: {host}:{port} is in use by another process$") as caught:
            ports.claim(f"{host}:{port}", "--http")
    assert caught.value.hint is not None
    assert "another port: --http" in caught.value.hint


def test_a_port_with_connections_that_just_closed_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        client = socket.create_connection(server.getsockname())
        served, _ = server.accept()
        served.close()  # the side that closes first keeps the port in TIME_WAIT
        client.close()
    assert ports.claim(address, "--http") == address


@pytest.mark.parametrize(
    ("address", "words"),
    [("host.invalid:80", "is not a known host"), ("203.0.113.1:80", "is no address of this machine")],
)
def test_an_address_of_elsewhere(address: str, words: str) -> None:
    with pytest.raises(CliError, match=words):
        ports.claim(address, "--http")


@pytest.mark.parametrize(
    ("address", "reached"),
    [("0.0.0.0:80", "127.0.0.1:80"), ("[::]:80", "[::1]:80"), ("10.0.0.1:80", "10.0.0.1:80")],
)
def test_where_a_server_is_reached(address: str, reached: str) -> None:
    assert ports.reachable(address) == reached


async def test_a_facade_that_answers_nonsense_does_not_serve() -> None:
    from mantler.cli.probe import facade_serves

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"nonsense\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        assert not await facade_serves(f"{host}:{port}", TlsFiles())


PROFILE = EngineProfile(
    (
        StepProfile(1, True, 2, 300, 1, 0.001, 0.08, 0.001, 0.001),
        StepProfile(16, False, 100, 0, 1600, 0.005, 1.3, 0.02, 0.015),
    ),
    cached_prompt_tokens=128,
    preemptions=3,
)


@pytest.fixture
def profiled() -> Iterator[str]:
    """The address of a runtime in a thread, whose model has run some steps."""
    started, stopped = threading.Event(), threading.Event()
    addresses: list[str] = []

    async def serve() -> None:
        async with FakeRuntime() as runtime:
            idle = Deployment(8192, 16, 0, 128, 0, 10**8, "cpu")
            known = runtime.models
            known["smollm2:135m"] = replace(known["smollm2:135m"], deployment=replace(idle, profile=PROFILE))
            known["org/other:tag"] = replace(known["org/other:tag"], deployment=idle)
            addresses.append(runtime.address)
            started.set()
            await asyncio.to_thread(stopped.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(30)
    yield addresses[0]
    stopped.set()
    thread.join()


def test_a_profile_shows_where_a_step_goes(mantler: Mantler, profiled: str) -> None:
    result = mantler("doctor", "--profile", "--runtime", profiled)
    assert result.code == 0, result.err
    header, *rows = result.out.splitlines()
    assert header.split()[:3] == ["requests", "doing", "steps"]
    assert re.split(r"  +", rows[1]) == [
        "9–16", "decoding", "100", "0", "1600", "0.05 ms", "13.00 ms", "0.20 ms", "0.15 ms", "3.0%",
    ]  # fmt: skip
    assert "300 were computed and 128 cached" in result.err
    assert "3 times" in result.err


def test_a_profile_is_json_for_scripts(mantler: Mantler, profiled: str) -> None:
    result = mantler("doctor", "--profile", "--runtime", profiled, "--json")
    busy = next(model for model in json.loads(result.out) if model["model"] == "smollm2:135m")
    assert (busy["cached_prompt_tokens"], busy["preemptions"]) == (128, 3)
    assert busy["steps"][1]["run_s"] == 1.3
    assert busy["steps"][1]["outside_run_share"] == pytest.approx(0.0299, abs=1e-3)


def test_a_profile_of_nobody_is_an_error(mantler: Mantler) -> None:
    result = mantler("doctor", "--profile")
    assert result.code == 1
    assert "hint: `mantler up` starts a runtime" in result.err
