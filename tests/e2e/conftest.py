"""One ``mantler up`` on the real model, shared by the end-to-end tests that do not break it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.processes import KEY, Process, free_port, running


@dataclass(frozen=True, slots=True)
class Mesh:
    """A running runtime and facade."""

    process: Process
    home: Path
    http: str
    runtime: str
    grpc: str
    """Of the edge."""
    key: str = KEY

    @property
    def url(self) -> str:
        return f"http://{self.http}"

    def create_key(self, *arguments: str) -> str:
        """``mantler keys create``, as an operator would run it beside the running facade."""
        command = [sys.executable, "-m", "mantler", "keys", "create", "--json", *arguments]
        env = {**os.environ, "MANTLER_HOME": str(self.home)}
        made = subprocess.run(command, env=env, capture_output=True, check=True, text=True)
        key: str = json.loads(made.stdout)["key"]
        return key


def fresh_home(folder: Path, model_home: Path) -> Path:
    """A ``MANTLER_HOME`` without keys that has the models of ``model_home``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(model_home / "models", target_is_directory=True)
    return folder


def up_arguments(http: str, runtime: str, grpc: str = "127.0.0.1:0") -> list[str]:
    return ["up", "--http", http, "--runtime", runtime, "--grpc", grpc, "--kv-memory-mb", "3000"]


@pytest.fixture(scope="session")
def mesh(model_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    home = fresh_home(tmp_path_factory.mktemp("mesh") / "home", model_home)
    http, runtime, grpc = (f"127.0.0.1:{free_port()}" for _ in range(3))
    with running(up_arguments(http, runtime, grpc), home, {"MANTLER_BOOTSTRAP_KEY": KEY}) as process:
        process.wait_for(r"Ctrl-C stops it")
        yield Mesh(process, home, http, runtime, grpc)


@pytest.fixture
def home_with_model(tmp_path: Path, model_home: Path) -> Callable[[], Path]:
    return lambda: fresh_home(tmp_path / "home", model_home)


@pytest.fixture(scope="session")
def dead_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A facade whose runtime is not there."""
    http = f"127.0.0.1:{free_port()}"
    arguments = ["facade", "--http", http, "--runtime", f"127.0.0.1:{free_port()}"]
    with running(arguments, tmp_path_factory.mktemp("dead"), {"MANTLER_BOOTSTRAP_KEY": KEY}) as process:
        process.wait_for(r"serving")
        yield f"http://{http}"
