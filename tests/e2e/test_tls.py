"""A runtime and a facade that know each other by certificates, as two processes with a client of each."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.default_model import DEFAULT_MODEL
from tests.e2e.processes import KEY, free_port, running

pytestmark = [pytest.mark.e2e, pytest.mark.model]


@dataclass(frozen=True)
class Pair:
    """Two processes, and what a client needs to talk to them."""

    home: Path
    http: str
    runtime: str
    env: dict[str, str]

    def mantler(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """A command beside them."""
        return command(self.home, arguments, env)


def command(home: Path, arguments: tuple[str, ...], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MANTLER_")}
    return subprocess.run(
        [sys.executable, "-m", "mantler", *arguments],
        env={**clean, "MANTLER_HOME": str(home), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def files(home: Path, name: str) -> dict[str, str]:
    """The variables of a process with the certificate ``name``."""
    certs = home / "certs"
    return {
        "MANTLER_TLS_CERT": str(certs / f"{name}.pem"),
        "MANTLER_TLS_KEY": str(certs / f"{name}.key"),
        "MANTLER_TLS_CA": str(certs / "ca.pem"),
    }


@pytest.fixture
def pair(home_with_model: Callable[[], Path]) -> Iterator[Pair]:
    home = home_with_model()
    for arguments in (("init",), ("issue", "machine", "--host", "gpu-1.lan"), ("issue", "web", "--host", "facade.lan")):
        made = command(home, ("certs", *arguments), {})
        assert made.returncode == 0, made.stderr
    port = free_port()
    http, runtime = f"127.0.0.1:{free_port()}", f"127.0.0.1:{port}"
    serving = ["runtime", "--runtime", f"0.0.0.0:{port}", "--kv-memory-mb", "500", "--model", DEFAULT_MODEL]
    web = files(home, "web")
    https = {"MANTLER_HTTP_TLS_CERT": web["MANTLER_TLS_CERT"], "MANTLER_HTTP_TLS_KEY": web["MANTLER_TLS_KEY"]}
    facade = ["facade", "--http", http, "--runtime", runtime]
    with running(serving, home, files(home, "machine")) as machine:
        machine.wait_for("loaded")
        with running(facade, home, {**web, **https, "MANTLER_BOOTSTRAP_KEY": KEY}) as process:
            process.wait_for("serving")
            yield Pair(home, http, runtime, web)
        assert "unencrypted" not in machine.text + process.text


def test_a_chat_goes_through_mutual_tls(pair: Pair) -> None:
    said = pair.mantler("chat", "--runtime", pair.runtime, "--temperature", "0", "Say hello.", **pair.env)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()
    asked = {"model": DEFAULT_MODEL, "temperature": 0, "messages": [{"role": "user", "content": "Say hello."}]}
    request = urllib.request.Request(
        f"https://{pair.http}/v1/chat/completions",
        json.dumps(asked).encode(),
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    trusting = ssl.create_default_context(cafile=pair.home / "certs" / "ca.pem")
    with urllib.request.urlopen(request, context=trusting, timeout=60) as response:
        answer = json.load(response)
    assert answer["choices"][0]["message"]["content"].strip() == said.stdout.strip()

    for env in ({}, {"MANTLER_TLS_CA": pair.env["MANTLER_TLS_CA"]}):
        refused = pair.mantler("models", "--remote", "--runtime", pair.runtime, **env)
        assert refused.returncode == 1
        assert "offline" in refused.stderr

    told = pair.mantler("doctor", "--json", "--http", pair.http, "--runtime", pair.runtime, **pair.env)
    rows = {row["check"]: row["detail"] for row in json.loads(told.stdout)}
    assert rows["runtime"] == f"serves at {pair.runtime}"
    told = pair.mantler("doctor", "--json", "--runtime", pair.runtime)
    assert "if it serves TLS" in told.stdout


def test_up_serves_both_over_tls(home_with_model: Callable[[], Path]) -> None:
    home = home_with_model()
    for arguments in (("init",), ("issue", "all", "--host", "gpu-1.lan")):
        assert command(home, ("certs", *arguments), {}).returncode == 0
    own = files(home, "all")
    https = ["--http-tls-cert", own["MANTLER_TLS_CERT"], "--http-tls-key", own["MANTLER_TLS_KEY"]]
    addresses = ["--http", f"0.0.0.0:{free_port()}", "--runtime", f"0.0.0.0:{free_port()}"]
    with running(["up", *addresses, *https, "--kv-memory-mb", "500"], home, own) as process:
        assert process.wait_for(r"REST +(\S+)")[1].startswith("https://127.0.0.1:")
        process.wait_for("Ctrl-C stops it")
        assert "warning" not in process.text
