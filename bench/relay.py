"""Measures what one token costs on its way from the engine to the client: processor time, delay and memory.

It starts a runtime whose engine is a clock, a real facade before it, and asks them as `make serving` does. Nothing is
computed, so that all processor time is the way's. Tokens that wait for the writer leave as one chunk, so that there are
fewer chunks than tokens where the steps are too short.

Examples:
  python -m bench.relay
  python -m bench.relay --streams 16 --steps-ms 14,1 --idle 0
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import uvloop

from bench.client import Endpoint, asker, body, session
from bench.figures import quantile
from bench.options import levels, positive
from bench.process import child, free_port, wait_until_served
from bench.relay_runtime import IDLE_STEP_MS, PREFIX
from bench.report import markdown, number
from bench.stream import Request
from mantler.client import RuntimeClient
from mantler.messages import Delta, GenerateRequest, StopParams, TextPrompt

CPU_HEADS = ("step", "streams", "chunks per token", "runtime", "facade", "client", "chunks/s per core of the facade")


@dataclass(frozen=True, slots=True)
class Servers:
    """What was started."""

    runtime: psutil.Process
    facade: psutil.Process
    url: str
    key: str
    address: str
    """Of the runtime."""

    def endpoint(self, step_ms: float) -> Endpoint:
        """Where streams with a token every ``step_ms`` are asked for."""
        return Endpoint(self.url, self.key, f"{PREFIX}{step_ms:g}")


@contextmanager
def started(folder: Path) -> Iterator[Servers]:
    """A runtime without a model and a facade, which end with the block."""
    address, http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    key = "mk_live_" + secrets.token_urlsafe(32)
    python, log = sys.executable, folder / "log"
    environment = {**os.environ, "MANTLER_HOME": str(folder), "MANTLER_BOOTSTRAP_KEY": key}
    facade_command = [python, "-m", "mantler", "facade", "--http", http, "--runtime", address]
    facade_command += ["--grpc", "127.0.0.1:0"]
    with (
        child([python, "-m", "bench.relay_runtime", address], log) as runtime,
        child(facade_command, log, env=environment) as facade,
    ):
        wait_until_served(facade, log, f"http://{http}/health")
        yield Servers(psutil.Process(runtime.pid), psutil.Process(facade.pid), f"http://{http}/v1", key, address)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one run. Processor time in seconds, of user and kernel."""

    tokens: int
    chunks: int
    runtime_s: float
    facade_s: float
    client_s: float


async def cost(servers: Servers, step_ms: float, streams: int, tokens: int) -> Cost:
    """What ``streams`` streams of ``tokens`` tokens each cost, connections and requests included."""
    processes = (servers.runtime, servers.facade, psutil.Process())
    async with session() as opened:
        ask = asker(opened, servers.endpoint(step_ms))
        before = [_cpu_s(process) for process in processes]
        found = await asyncio.gather(*(ask(Request("", "x", tokens), lambda: None) for _ in range(streams)))
        spent = [_cpu_s(process) - start for process, start in zip(processes, before, strict=True)]
    if failed := [stream.error for stream in found if stream.error]:
        raise SystemExit(f"{len(failed)} streams failed: {failed[0]}")
    return Cost(streams * tokens, sum(len(stream.pieces) for stream in found), *spent)


async def delays_ms(servers: Servers, step_ms: float, tokens: int) -> tuple[list[float], list[float]]:
    """From a token's text to its arrival, in one stream alone: from the runtime itself, and through the facade."""
    request = GenerateRequest("relay", f"{PREFIX}{step_ms:g}", TextPrompt("x"), stop=StopParams(max_tokens=tokens))
    async with RuntimeClient(servers.address) as client, aclosing(client.generate(request, 60)) as events:
        direct = [_age_ms(event.body.text) async for event in events if isinstance(event.body, Delta)]
    async with session() as opened, _asked(opened, servers.endpoint(step_ms), tokens) as response:
        relayed = [_age_ms(_content(line)) async for line in response.content if b'"content":" ' in line]
    return direct, relayed


async def idle_bytes(servers: Servers, streams: int) -> tuple[float, int]:
    """Resident memory of the facade with ``streams`` streams that have begun and are silent: for each, and all."""
    before = servers.facade.memory_info().rss
    async with session() as opened, AsyncExitStack() as open_streams:
        for _ in range(streams):
            response = await open_streams.enter_async_context(_asked(opened, servers.endpoint(IDLE_STEP_MS), 2))
            await response.content.readline()
        held = servers.facade.memory_info().rss
        return (held - before) / streams, held


def _asked(opened: aiohttp.ClientSession, endpoint: Endpoint, tokens: int) -> aiohttp.client._RequestContextManager:
    sent = body(Request("", "x", tokens), endpoint.model)
    return opened.post(f"{endpoint.url}/chat/completions", json=sent, headers=endpoint.headers, raise_for_status=True)


def _content(line: bytes) -> str:
    text: str = json.loads(line.removeprefix(b"data: "))["choices"][0]["delta"]["content"]
    return text


def _age_ms(text: str) -> float:
    """Of the oldest token in ``text``."""
    return (time.monotonic_ns() - int(text.split()[0])) / 1e6


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def line(step_ms: float, streams: int, runs: list[Cost]) -> list[str]:
    """A line of the table: medians over the runs."""

    def per_token_ms(spent_s: list[float]) -> str:
        return number(statistics.median(s / run.tokens for s, run in zip(spent_s, runs, strict=True)) * 1000, 3, " ms")

    return [
        f"{step_ms:g} ms",
        str(streams),
        number(statistics.median(run.chunks / run.tokens for run in runs), 2),
        per_token_ms([run.runtime_s for run in runs]),
        per_token_ms([run.facade_s for run in runs]),
        per_token_ms([run.client_s for run in runs]),
        number(statistics.median(run.chunks / run.facade_s for run in runs), 0),
    ]


async def measured(servers: Servers, given: argparse.Namespace) -> None:
    """Prints everything."""
    await cost(servers, given.steps_ms[0], given.streams, 50)
    lines = []
    for step_ms in given.steps_ms:
        tokens = max(50, int(given.seconds * 1000 / step_ms))
        runs = [await cost(servers, step_ms, given.streams, tokens) for _ in range(given.rounds)]
        lines.append(line(step_ms, given.streams, runs))
    print("Processor time per token:\n")
    print(markdown(CPU_HEADS, lines))
    direct, relayed = await delays_ms(servers, given.steps_ms[0], 300)
    for name, found in (("the runtime itself", direct), ("the facade", relayed)):
        p50, p99 = quantile(found, 0.5), quantile(found, 0.99)
        print(f"One stream, from a token's text to its arrival from {name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    if given.idle:
        each, held = await idle_bytes(servers, given.idle)
        print(f"Facade, with {given.idle} silent streams: {each / 1024:.0f} KiB each, {held / 1e6:.0f} MB in all")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="relay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=positive, default=16, help="at once (default: %(default)s)")
    parser.add_argument("--steps-ms", type=levels, default=(14, 1), help="lengths of steps (default: 14,1)")
    parser.add_argument("--seconds", type=positive, default=4, help="of each run, at the least (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=3, help="runs of each step (default: %(default)s)")
    parser.add_argument("--idle", type=int, default=2000, help="silent streams; 0 for none (default: 2000)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as servers:
        uvloop.run(measured(servers, given))


if __name__ == "__main__":
    main()
