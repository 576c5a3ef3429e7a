"""Operating a mesh of real processes by its commands: one machine is dialled, the other one joins through a tunnel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.default_model import DEFAULT_MODEL
from tests.e2e.conftest import fresh_home
from tests.e2e.processes import KEY, free_port, running

pytestmark = [pytest.mark.e2e, pytest.mark.model]

SMALL = ("--threads", "1", "--kv-memory-mb", "200")


@dataclass
class Operator:
    """Somebody at the facade's machine."""

    home: Path
    grpc: str = ""
    url: str = ""

    def run(self, *arguments: str) -> str:
        """What a command prints on stdout. It must succeed."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MANTLER_")}
        env = {**clean, "MANTLER_HOME": str(self.home), "MANTLER_GRPC": self.grpc}
        command = [sys.executable, "-m", "mantler", *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def mantles(self) -> list[tuple[str, str, str]]:
        """Model, machine and state of each."""
        found = json.loads(self.run("mantles", "--json"))
        return [(each["model"], each["machine"], each["state"]) for each in found]

    def states(self) -> dict[str, str]:
        """Of the machines."""
        return {each["id"]: each["state"] for each in json.loads(self.run("machines", "--json"))}

    def models(self) -> list[str]:
        """What ``GET /v1/models`` lists."""
        _, listed = self._http("/v1/models", KEY)
        return [each["id"] for each in listed["data"]]

    def ask(self, key: str = KEY) -> tuple[int, Any]:
        """Status and JSON of a conversation."""
        return self._http(
            "/v1/chat/completions",
            key,
            {
                "model": DEFAULT_MODEL,
                "messages": [{"role": "user", "content": "Hello"}],
                "max_tokens": 4,
                "temperature": 0,
            },
        )

    def _http(self, path: str, key: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


def test_a_model_is_deployed_moved_and_taken_away(model_home: Path, tmp_path: Path) -> None:
    first = f"127.0.0.1:{free_port()}"
    operator = Operator(tmp_path / "facade")
    with ExitStack() as stack:
        home = fresh_home(tmp_path / "gpu1", model_home)
        arguments = ["runtime", "--runtime", first, "--machine-id", "gpu1", *SMALL]
        gpu1 = stack.enter_context(running(arguments, home))
        arguments = ["facade", "--http", "127.0.0.1:0", "--machines", first, "--resume-within-s", "0"]
        facade = stack.enter_context(running(arguments, operator.home, {"MANTLER_BOOTSTRAP_KEY": KEY}))
        http, operator.grpc = facade.wait_for(r"serving http=(\S+) grpc=(\S+)").groups()
        operator.url = f"http://{http}"
        home = fresh_home(tmp_path / "gpu2", model_home)
        (home / "config.toml").write_text("model = []\n")
        arguments = ["runtime", "--runtime", "127.0.0.1:0", "--machine-id", "gpu2", "--mesh", operator.grpc]
        token = operator.run("tokens", "create", "--name", "gpu2").strip()
        arguments += ["--reach", "tunnel", *SMALL]
        gpu2 = stack.enter_context(running(arguments, home, {"MANTLER_MACHINE_TOKEN": token}))
        gpu1.wait_for("serving ")
        gpu2.wait_for("in the mesh of ")
        assert operator.states() == {"gpu1": "online", "gpu2": "online"}
        assert " tunnel " in operator.run("machines").splitlines()[2]
        assert operator.mantles() == [(DEFAULT_MODEL, "gpu1", "ready")]

        key = operator.run("keys", "create", "--machines", "gpu2").strip()
        status, answer = operator.ask(key)
        assert (status, answer["error"]["code"]) == (403, "model_not_allowed")
        operator.run("deploy", DEFAULT_MODEL, "--machine", "gpu2", "--no-pull")
        assert operator.mantles() == [(DEFAULT_MODEL, "gpu1", "ready"), (DEFAULT_MODEL, "gpu2", "ready")]
        status, there = operator.ask(key)
        assert status == 200

        operator.run("drain", "gpu1", "--wait")
        assert operator.states() == {"gpu1": "draining", "gpu2": "online"}
        status, answer = operator.ask()
        assert (status, answer["choices"]) == (200, there["choices"])
        operator.run("undeploy", DEFAULT_MODEL, "--machine", "gpu2")
        assert operator.mantles() == [(DEFAULT_MODEL, "gpu1", "draining")]
        assert (operator.models(), operator.ask()[0]) == ([], 503)
        operator.run("drain", "gpu1", "--undo")
        assert (operator.models(), operator.ask()[0]) == ([DEFAULT_MODEL], 200)
