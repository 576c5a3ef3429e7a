"""The servers that are compared: how each is found, started and asked."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.client import Endpoint, asker, session
from bench.process import START_S, StartError, child, free_port, tail, wait_until_served
from bench.record import run
from bench.weights import CACHE, MODEL, environment
from bench.workloads import Plan, Serving, Workload, warm_up

ROOT = Path(__file__).resolve().parent.parent
PEERS = CACHE / "peers"
SLOT_TOKENS = 2048
"""Context of each of llama-server's slots."""
WORKLOAD_TIMEOUT_S = 1800.0
VERSION_TIMEOUT_S = 60.0
HOW_TO_GET = "`make bench-peers` builds or installs it, or {flag} names one that is there"


class Server(Protocol):
    """A server that is up."""

    @property
    def pid(self) -> int:
        """Of its first process."""

    def run(self, workload: Workload, seed: str) -> list[dict[str, Any]]:
        """Warms up and runs a workload. Raises ``TimeoutError`` or :class:`StartError`."""


class Peer(Protocol):
    """A server that can be started."""

    name: str

    def absent(self) -> str:
        """Why it cannot be measured, and how to get it; empty if it can."""

    def about(self) -> str:
        """Its version and how it is run."""

    @contextmanager
    def started(self, serving: Serving, log: Path) -> Iterator[Server]:
        """It, up, for as long as the block lasts. Raises :class:`StartError`."""


@dataclass(frozen=True, slots=True)
class HttpServer:
    """A server that speaks HTTP."""

    pid: int
    endpoint: Endpoint

    def run(self, workload: Workload, seed: str) -> list[dict[str, Any]]:
        return asyncio.run(self._run(workload, seed))

    async def _run(self, workload: Workload, seed: str) -> list[dict[str, Any]]:
        async with asyncio.timeout(WORKLOAD_TIMEOUT_S), session() as opened:
            ask = asker(opened, self.endpoint)
            if error := (await warm_up(ask, f"{seed} {workload.name}")).error:
                raise StartError(f"its first request failed: {error}")
            return await run(workload, ask, seed, time.perf_counter)


@dataclass(frozen=True, slots=True)
class Mantler:
    """``mantler up`` with a home of its own, whose models are those of ``models``."""

    command: tuple[str, ...]
    models: Path
    threads: int
    arguments: tuple[str, ...] = ()
    name = "Mantler"

    def absent(self) -> str:
        return ""

    def about(self) -> str:
        versions = json.loads(output([*self.command, "version", "--json"]))
        listed = ", ".join(f"{name} {version}" for name, version in versions.items())
        flags = " ".join([f"--threads {self.threads} --max-batch SLOTS", *self.arguments])
        return f"{listed}; over HTTP, `mantler up {flags}`"

    @contextmanager
    def started(self, serving: Serving, log: Path) -> Iterator[Server]:
        key, http, runtime = "mk_live_" + secrets.token_urlsafe(32), free_port(), free_port()
        command = [*self.command, "up", "--http", f"127.0.0.1:{http}", "--runtime", f"127.0.0.1:{runtime}"]
        command += ["--grpc", "127.0.0.1:0"]
        command += ["--model", MODEL, "--threads", str(self.threads), "--max-batch", str(serving.slots)]
        endpoint = Endpoint(f"http://127.0.0.1:{http}/v1", key, MODEL)
        with tempfile.TemporaryDirectory() as home:
            Path(home, "models").symlink_to(self.models)
            with child([*command, *self.arguments], log, env=environment(Path(home), key)) as process:
                # The list names what is loaded only: the facade may answer before the runtime does.
                wait_until_served(process, log, f"{endpoint.url}/models", endpoint.headers, holds=MODEL)
                yield HttpServer(process.pid, endpoint)


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """llama.cpp's ``llama-server``."""

    program: Path
    gguf: Path
    threads: int
    arguments: tuple[str, ...] = ()
    name = "llama-server"

    def absent(self) -> str:
        return "" if self.program.is_file() else HOW_TO_GET.format(flag="--llama-server PATH")

    def about(self) -> str:
        first = output([str(self.program), "--version"]).splitlines()[0]
        flags = " ".join([f"--threads {self.threads} --parallel SLOTS --ctx-size SLOTS×{SLOT_TOKENS}", *self.arguments])
        return f"{first}; over HTTP, `llama-server {flags}`, without prompt cache but for the shared prefix"

    @contextmanager
    def started(self, serving: Serving, log: Path) -> Iterator[Server]:
        port = free_port()
        command = [str(self.program), "--model", str(self.gguf), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--threads", str(self.threads), "--parallel", str(serving.slots)]
        command += ["--ctx-size", str(serving.slots * SLOT_TOKENS), *self.arguments]
        if not serving.prefix_cache:
            command += ["--no-cache-prompt", "--cache-ram", "0"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
        with child(command, log, env=clean) as process:
            wait_until_served(process, log, f"http://127.0.0.1:{port}/health")
            yield HttpServer(process.pid, Endpoint(f"http://127.0.0.1:{port}/v1", "none", "default"))


@dataclass(frozen=True, slots=True)
class OpenVino:
    """OpenVINO GenAI's continuous batching behind our own small server: the fair comparison."""

    python: Path
    gguf: Path
    threads: int
    name = "OpenVINO GenAI (HTTP)"

    def absent(self) -> str:
        return openvino_absent(self.python)

    def about(self) -> str:
        return f"{openvino_version(self.python)}; behind `bench/openvino_server.py`, {OPENVINO_SETTINGS}"

    @contextmanager
    def started(self, serving: Serving, log: Path) -> Iterator[Server]:
        port = free_port()
        command = openvino_command(self.python, "bench.openvino_server", self.gguf, self.threads, serving)
        with child([*command, "--port", str(port)], log, env=openvino_environment()) as process:
            wait_until_served(process, log, f"http://127.0.0.1:{port}/health")
            yield HttpServer(process.pid, Endpoint(f"http://127.0.0.1:{port}/v1", "none", "default"))


@dataclass(frozen=True, slots=True)
class OpenVinoInProcess:
    """OpenVINO GenAI without HTTP and without detokenising: the stricter comparison."""

    python: Path
    gguf: Path
    threads: int
    plan: Plan
    name = "OpenVINO GenAI (in process)"

    def absent(self) -> str:
        return openvino_absent(self.python)

    def about(self) -> str:
        return f"{openvino_version(self.python)}; without HTTP and detokenising, {OPENVINO_SETTINGS}"

    @contextmanager
    def started(self, serving: Serving, log: Path) -> Iterator[Server]:
        command = openvino_command(self.python, "bench.openvino_inprocess", self.gguf, self.threads, serving)
        command += ["--plan", json.dumps(asdict(self.plan))]
        with child(command, log, env=openvino_environment(), piped=True) as process:
            server = LineServer(process, log)
            server.read(START_S)
            yield server


class LineServer:
    """A process that runs a workload for each line that it gets."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._log = log

    def run(self, workload: Workload, seed: str) -> list[dict[str, Any]]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"workload": workload.name, "seed": seed}) + "\n")
        self._process.stdin.flush()
        streams: list[dict[str, Any]] = self.read(WORKLOAD_TIMEOUT_S)
        return streams

    def read(self, timeout_s: float) -> Any:
        """The next line's value. A process that takes longer is killed."""
        assert self._process.stdout is not None
        watch = threading.Timer(timeout_s, self._process.kill)
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise StartError(f"it ended before it answered:\n{tail(self._log)}")
        return json.loads(line)


OPENVINO_SETTINGS = "`dynamic_split_fuse`, defaults but for 2 GB of cache; prefix caching for the shared prefix only"


def openvino_command(python: Path, module: str, gguf: Path, threads: int, serving: Serving) -> list[str]:
    """What starts one of our two OpenVINO programs."""
    command = [str(python), "-m", module, "--gguf", str(gguf), "--threads", str(threads)]
    return [*command, "--slots", str(serving.slots), *(["--prefix-cache"] if serving.prefix_cache else [])]


def openvino_environment() -> dict[str, str]:
    """Its own packages, and this package."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def openvino_absent(python: Path) -> str:
    """Why OpenVINO cannot be measured; empty if it can."""
    return "" if python.is_file() else HOW_TO_GET.format(flag="--openvino-python PATH")


def openvino_version(python: Path) -> str:
    """Of the package."""
    return "openvino-genai " + output([str(python), "-c", "import openvino_genai as o; print(o.__version__)"])


def output(command: Sequence[str]) -> str:
    """What a command prints."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=VERSION_TIMEOUT_S, check=True
    )
    return done.stdout.strip()


def this_mantler() -> tuple[str, ...]:
    """The command of this checkout."""
    return sys.executable, "-m", "mantler"
