"""Measures what machines that announce themselves cost etcd and a facade, and how soon the facade knows of a change.

It starts an etcd, a process of machines that are simulated and announce themselves as runtimes do, and follows them as
a facade does. Idle machines have nothing to do; busy ones have a dozen streams of 768 tokens and five seconds each, on
average.

Examples:
  python -m bench.etcd_mesh
  python -m bench.etcd_mesh --machines 100 --seconds 5
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import psutil

from bench.etcd_announcers import CHANGE_EVERY_S, PREFIX
from bench.figures import quantile
from bench.options import levels, positive
from bench.process import child, free_port, wait_until_served
from bench.report import markdown, number
from mantler.etcd import Etcd
from mantler.mesh.directory import Change, Directory, MachineChange
from mantler.routing.etcd import EtcdMembership
from mantler.routing.view import View
from mantler.security.transport import Security

CHANGES = 100
READY_S = 60.0
SETTLE_S = 2.0
"""After the last machine came: its load follows, and those that came too late for their lease come again."""
LATE_S = 10.0
HEADS = ("machines", "", "writes/s", "renewals/s", "etcd", "facade", "a change is seen after p50", "p99")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one mesh. Processors are shares of a core."""

    machines: int
    busy: bool
    writes_per_s: float
    renewals_per_s: float
    etcd_cores: float
    facade_cores: float
    seen_after_s: tuple[float, ...]

    def row(self) -> tuple[str, ...]:
        """A line of the table."""
        return (
            f"{self.machines:,}",
            "busy" if self.busy else "idle",
            number(self.writes_per_s, 1),
            number(self.renewals_per_s, 0),
            number(100 * self.etcd_cores, 1, " %"),
            number(100 * self.facade_cores, 1, " %"),
            number(1e3 * statistics.median(self.seen_after_s), 1, " ms"),
            number(1e3 * quantile(self.seen_after_s, 0.99), 1, " ms"),
        )


class Watcher:
    """Notes when a facade's view changes."""

    def __init__(self) -> None:
        self.view = View(Directory())
        self.seen: dict[str, list[float]] = {}
        """By machine: when it began or ended to drain."""
        self.view.directory.subscribe(self._take)

    def _take(self, change: Change) -> None:
        if isinstance(change, MachineChange) and change.before is not None and change.after is not None:
            self.seen.setdefault(change.machine_id, []).append(time.monotonic())

    async def has(self, machines: int) -> None:
        """Waits until they are online. Raises ``TimeoutError``."""
        async with asyncio.timeout(READY_S):
            while len(self.view.directory) < machines:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)


async def measure(machines: int, *, busy: bool, seconds: float, folder: Path) -> Cost:
    """One mesh, in ``folder``."""
    async with AsyncExitStack() as stack:
        url = f"http://127.0.0.1:{free_port()}"
        peer = f"http://127.0.0.1:{free_port()}"
        places = ["--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peer]
        places += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        log = folder / "log"
        server = stack.enter_context(child(["etcd", "--data-dir", str(folder / "data"), *places], log))
        wait_until_served(server, log, f"{url}/health")
        watcher = Watcher()
        etcd = await stack.enter_async_context(Etcd([url]))
        membership = EtcdMembership(etcd, PREFIX, watcher.view, Security())
        await membership.start()
        stack.push_async_callback(membership.close)
        command = [sys.executable, "-m", "bench.etcd_announcers", url, str(machines), *(["--busy"] if busy else [])]
        announcers = stack.enter_context(child(command, log, piped=True))
        await watcher.has(machines)
        await asyncio.sleep(SETTLE_S)
        began_s, began = time.monotonic(), _counters(server, url)
        await asyncio.sleep(seconds)
        took_s = time.monotonic() - began_s
        ended = _counters(server, url)
        writes, renewals, of_etcd, of_facade = (
            (now - before) / took_s for now, before in zip(ended, began, strict=True)
        )
        return Cost(machines, busy, writes, renewals, of_etcd, of_facade, await _changes(announcers, watcher))


def _counters(server: Popen[str], url: str) -> tuple[float, float, float, float]:
    """Writes, renewals, and the processor time of etcd and of this process, each so far."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        lines = [line.split(" ") for line in answer.read().decode().splitlines() if not line.startswith("#")]
    metrics = {line[0]: float(line[-1]) for line in lines}
    times = [psutil.Process(pid).cpu_times() for pid in (server.pid, None)]
    spent = [used.user + used.system for used in times]
    writes, renewals = metrics["etcd_mvcc_put_total"], metrics["etcd_debugging_lease_renewed_total"]
    return writes, renewals, spent[0], spent[1]


async def _changes(announcers: Popen[str], watcher: Watcher) -> tuple[float, ...]:
    """Has machines change. Returns how long after each change the view had it, in seconds."""
    if announcers.stdin is None or announcers.stdout is None:
        raise AssertionError("it was started with pipes")
    watcher.seen.clear()
    announcers.stdin.write(f"{CHANGES}\n")
    announcers.stdin.flush()
    lines = [await asyncio.to_thread(announcers.stdout.readline) for _ in range(CHANGES)]
    changed: dict[str, list[float]] = {}
    for line in lines:
        machine, at_s = line.split()
        changed.setdefault(machine, []).append(float(at_s))
    async with asyncio.timeout(LATE_S):
        while sum(map(len, watcher.seen.values())) < CHANGES:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(CHANGE_EVERY_S)
    return tuple(
        seen_s - changed_s
        for machine, times in changed.items()
        for changed_s, seen_s in zip(times, watcher.seen[machine], strict=True)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=levels, default=[100, 500], help="how many, default 100,500")
    parser.add_argument("--seconds", type=positive, default=15.0, help="of each measurement, default 15")
    options = parser.parse_args(argv)
    costs = []
    for machines in options.machines:
        for busy in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                cost = asyncio.run(measure(machines, busy=busy, seconds=options.seconds, folder=Path(folder)))
            costs.append(cost.row())
    sys.stdout.write(markdown(HEADS, costs, left=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
