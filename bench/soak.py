"""A long mixed load against a real `mantler up`, over HTTP: does memory stay flat, and does every slot come free?

Long and short prompts, sampling parameters, stop strings, shared prefixes, answers in one piece, readers that are
slow, clients that go away at any moment, and bursts above the limit of the queue, which must be answered with 429.
Some greedy requests are repeated all the time and must always get the same text. Every minute a line says how the
server is.

In the end everything must be idle; what it found goes into a folder as JSON and a plot, and the exit code is 1 if a
check failed. Memory is flat if a line through the last third of the run grows by --max-growth-mb at most.

Examples:
  make soak
  make soak ARGS='--minutes 1'
  python -m bench.soak --minutes 60 --mantler-args '--kv-memory-mb 600'
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import random
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import psutil
from rich.console import Console

from bench import weights
from bench.client import Endpoint
from bench.machine import machine
from bench.options import positive
from bench.peers import this_mantler
from bench.process import StartError, child, free_port, rss_bytes, tree, wait_until_served
from bench.soak_calls import Mix
from bench.soak_client import CALL_TIMEOUT_S, CANCELLED, ERROR, OK, REFUSED, Client, Tally, client
from bench.soak_plot import draw
from bench.soak_verdict import Check, End, Sample, checks
from mantler.client import RuntimeClient
from mantler.errors import MantlerError

SLOTS, QUEUE = 16, 16
BURST_EVERY_S = 20.0
SAMPLE_EVERY_S = 5.0
PRINT_EVERY_S = 60.0
IDLE_WITHIN_S = 60.0
REFUSED_PAUSE_S = 0.5
KV_MEMORY_MB = 1300
"""Little enough to be filled within minutes, so that memory can be flat after."""


class Soak:
    """One run against a server that is up."""

    def __init__(self, endpoint: Endpoint, runtime: str, pid: int, given: argparse.Namespace, console: Console) -> None:
        self._endpoint = endpoint
        self._runtime = runtime
        self._given = given
        self._console = console
        self._processes = processes(pid)
        self._pid = pid
        self._mix = Mix(weights.MODEL, random.Random(given.seed))
        self.tally = Tally()
        self.samples: list[Sample] = []
        self.idle = False

    async def run(self) -> None:
        """Loads the server, then waits until it is idle."""
        self._started = time.monotonic()
        deadline = self._started + 60 * self._given.minutes
        async with client(self._endpoint, self.tally) as clients, RuntimeClient(self._runtime) as runtime:
            watching = asyncio.create_task(self._watch(runtime))
            try:
                async with asyncio.timeout(60 * self._given.minutes + 2 * CALL_TIMEOUT_S), asyncio.TaskGroup() as group:
                    for _ in range(self._given.streams):
                        group.create_task(self._user(clients, deadline))
                    group.create_task(self._bursts(clients, deadline))
            except TimeoutError:
                self.tally.error("load", "it did not end in time")
            finally:
                watching.cancel()
                await asyncio.wait({watching})
            self._console.print("load is over; waiting until the server is idle")
            self.idle = await self._idle(runtime)

    def restarted(self) -> tuple[str, ...]:
        """Names of processes that are not those of the start."""
        now = processes(self._pid)
        return tuple(name for name, process in self._processes.items() if now.get(name) != process)

    async def _user(self, clients: Client, deadline: float) -> None:
        while time.monotonic() < deadline:
            if await clients.call(next(self._mix)) in (REFUSED, ERROR):
                await asyncio.sleep(REFUSED_PAUSE_S)

    async def _bursts(self, clients: Client, deadline: float) -> None:
        while time.monotonic() + BURST_EVERY_S / 2 < deadline:
            await asyncio.sleep(BURST_EVERY_S / 2)
            await asyncio.gather(*(clients.call(call) for call in self._mix.burst(SLOTS + 2 * QUEUE)))
            await asyncio.sleep(BURST_EVERY_S / 2)

    async def _watch(self, runtime: RuntimeClient) -> None:
        printed = 0.0
        while True:
            try:
                used, queue = await busy(runtime)
            except MantlerError as error:
                self.tally.error("status", error.code.name)
                used, queue = -1, -1
            sample = self._sample(used, queue)
            self.samples.append(sample)
            if sample.at_s >= printed + PRINT_EVERY_S:
                printed += PRINT_EVERY_S
                self._console.print(described(sample))
            await asyncio.sleep(SAMPLE_EVERY_S)

    def _sample(self, used: int, queue: int) -> Sample:
        memory = {name: rss_bytes([process]) / 1e6 for name, process in self._processes.items()}
        total = [self.tally.total(outcome) for outcome in (OK, REFUSED, CANCELLED, ERROR)]
        at_s = round(time.monotonic() - self._started, 1)
        return Sample(at_s, memory.get("runtime", 0.0), memory.get("facade", 0.0), used, queue, *total)

    async def _idle(self, runtime: RuntimeClient) -> bool:
        deadline, found = time.monotonic() + IDLE_WITHIN_S, ""
        while time.monotonic() < deadline:
            try:
                used, queue = await busy(runtime)
            except MantlerError as error:
                found = error.code.name
            else:
                if (used, queue) == (0, 0):
                    self._console.print(f"idle: {described(self._sample(0, 0))}")
                    return True
                found = f"{used} slots used and {queue} queued"
            await asyncio.sleep(0.1)
        self.tally.error("status", f"{IDLE_WITHIN_S:g} s after the load: {found}")
        return False


def described(sample: Sample) -> str:
    """A sample for people."""
    return (
        f"{sample.at_s / 60:5.1f} min: runtime {sample.runtime_mb:.0f} MB, facade {sample.facade_mb:.0f} MB, "
        f"{sample.slots_used} slots used, {sample.queue} queued; {sample.ok} answered, {sample.refused} refused (429), "
        f"{sample.cancelled} cancelled, {sample.errors} errors"
    )


async def busy(runtime: RuntimeClient) -> tuple[int, int]:
    """Slots used and requests queued. Raises ``MantlerError``."""
    deployment = (await runtime.get_model(weights.MODEL)).deployment
    return (deployment.slots_used, deployment.queue_length) if deployment is not None else (-1, -1)


def processes(pid: int) -> dict[str, psutil.Process]:
    """The children of `mantler up` by the command that each runs: runtime and facade."""
    found = {}
    for process in tree(pid)[1:]:
        words = process.cmdline()
        if "mantler" in words[:-1]:
            found[words[words.index("mantler") + 1]] = process
    return found


def soak(given: argparse.Namespace, folder: Path, console: Console) -> list[Check]:
    """Everything: start, load, stop, judge, write."""
    mantler = (str(given.mantler),) if given.mantler else this_mantler()
    models = weights.converted(mantler, weights.CACHE / "bench" / "home")
    key, runtime = "mk_live_" + secrets.token_urlsafe(32), f"127.0.0.1:{free_port()}"
    endpoint = Endpoint(f"http://127.0.0.1:{free_port()}/v1", key, weights.MODEL)
    http = endpoint.url.removeprefix("http://").removesuffix("/v1")
    command = [*mantler, "up", "--http", http, "--runtime", runtime, "--grpc", "127.0.0.1:0", "--model", weights.MODEL]
    command += ["--max-batch", str(SLOTS), "--max-queue", str(QUEUE), "--kv-memory-mb", str(KV_MEMORY_MB)]
    log = folder / "mantler.log"
    with tempfile.TemporaryDirectory() as home:
        Path(home, "models").symlink_to(models)
        arguments = [*command, *shlex.split(given.mantler_args)]
        with child(arguments, log, env=weights.environment(Path(home), key)) as process:
            wait_until_served(process, log, f"{endpoint.url}/models", endpoint.headers, holds=weights.MODEL)
            run = Soak(endpoint, runtime, process.pid, given, console)
            asyncio.run(run.run())
            restarted = run.restarted()
        end = End(run.idle, restarted, process.returncode)
    found = checks(run.samples, run.tally, end, given.minutes, given.max_growth_mb)
    value = {
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "bench.soak", *sys.argv[1:]]),
        "machine": machine(),
        "checks": [asdict(check) for check in found],
        "counts": run.tally.counts,
        "first errors": run.tally.examples,
        "samples": [asdict(sample) for sample in run.samples],
    }
    (folder / "soak.json").write_text(json.dumps(value, indent=1), encoding="utf-8")
    console.print(f"{draw(run.samples, folder)}", markup=False, soft_wrap=True)
    for example in run.tally.examples:
        console.print(f"error: {example}", markup=False, soft_wrap=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the load (default: %(default)g)")
    parser.add_argument("--streams", type=positive, default=24, help="clients at the same time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random mix (default: %(default)s)")
    parser.add_argument(
        "--max-growth-mb", type=float, default=20.0, help="of a process in the last third (default: %(default)g)"
    )
    parser.add_argument("--out", type=Path, help="folder of the results (default: .cache/soak/ and the time)")
    parser.add_argument("--mantler", type=Path, help="the mantler command (default: this checkout)")
    parser.add_argument("--mantler-args", default="", metavar="ARGS", help="more flags of mantler up, in one word")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = given.out or weights.CACHE / "soak" / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        found = soak(given, folder, console)
    except KeyboardInterrupt:
        sys.exit(130)
    except (StartError, subprocess.SubprocessError) as error:
        sys.exit(f"{error}")
    marks = {True: "[green]ok  [/]", False: "[red]BAD [/]", None: "[dim]–   [/]"}
    for check in found:
        console.print(f"{marks[check.good]} {check.name}: {check.found}")
    print(folder)
    sys.exit(any(check.good is False for check in found))


if __name__ == "__main__":
    main()
