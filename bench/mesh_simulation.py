"""Simulates a mesh: how long choices take, how evenly machines are loaded, and how often they have what is asked.

The balancer and the directory are the real ones; machines, streams and the clock are not. Each stream asks, reads the
answer, pauses and asks again. Machines keep a bounded cache of prefixes, and one machine with a cache as large as all
of theirs together gets the same requests, to compare with. Only the times of choices and of changes of membership are
measured on this computer: leave it alone meanwhile.

Examples:
  python -m bench.mesh_simulation
  python -m bench.mesh_simulation --machines 4,32 --facades 2 --plot mesh.svg
  python -m bench.mesh_simulation --policies load --json > load.json
  python -m bench.mesh_simulation --policies affinity --add load.json --plot mesh.svg
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from bench.figures import quantile
from bench.machine import machine as this_machine
from bench.mesh_figures import Figures, membership_table, table
from bench.mesh_machines import WORKLOADS, BlockCache, SimulatedMachine, Streams, Turn, Workload
from bench.mesh_membership import measure_membership, mesh_machine
from bench.mesh_plot import draw
from bench.options import among, levels, positive
from mantler.mesh.balancer import Assignment, Balancer, BalancerSettings, Request
from mantler.mesh.breaker import Outcome
from mantler.mesh.directory import Directory
from mantler.mesh.load import estimate_tokens
from mantler.mesh.machine import LoadReport, MachineId, ModelLoad
from mantler.mesh.membership import Registered, Version
from mantler.mesh.prefix import NO_PREFIX, chain

MODEL = "simulated"
SLOTS = 96
REPORT_EVERY_S = 1.0
REPORT_DELAY_S = 0.2
POLICIES = ("affinity", "load")
"""With the prefixes of requests, and without them."""


class Simulation:
    """A mesh, its facades and its streams, on a clock of their own."""

    def __init__(self, workload: Workload, policy: str, machines: int, streams: int, given: argparse.Namespace) -> None:
        self._workload = workload
        self._policy = policy
        self._draw = random.Random(given.seed)
        self._streams = Streams(workload, machines, given.seed)
        self._count = streams
        self._machines = [SimulatedMachine(SLOTS, given.cache_blocks) for _ in range(machines)]
        self._single = BlockCache(given.cache_blocks * machines)
        self._single_hits = 0
        self._directories = [Directory() for _ in range(given.facades)]
        settings = BalancerSettings(max_hashes=given.max_hashes)
        self._facades = [Balancer(directory, self._draw, settings) for directory in self._directories]
        self._held = [0] * machines
        self._places = {MachineId(f"m{place}"): place for place in range(machines)}
        for machine_id, directory in itertools.product(self._places, self._directories):
            directory.apply(Registered(mesh_machine(machine_id, MODEL, SLOTS), Version(1, 1), 1e9), 0)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._asked = 0
        self._requests = requests(streams, given)
        self._choices_ns: list[int] = []
        self._ratios: list[float] = []

    def run(self, advance: Callable[[], None]) -> Figures:
        """Runs it until enough requests were made. Calls ``advance`` with each of them."""
        for _ in range(self._count):
            self._at(10 * self._draw.random(), self._asks(self._streams.first(), advance))
        self._at(REPORT_EVERY_S, self._report)
        while self._asked < self._requests:
            now_s, _, action = heapq.heappop(self._events)
            action(now_s)
        return self._figures()

    def _at(self, when_s: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), action))

    def _asks(self, turn: Turn, advance: Callable[[], None]) -> Callable[[float], None]:
        def ask(now_s: float) -> None:
            advance()
            self._asked += 1
            self._single_hits += self._single.take(turn.blocks)
            facade = self._draw.choice(self._facades)
            assignment = self._choose(facade, turn, now_s)
            place = self._places[assignment.machine.id]
            self._held[place] += assignment.tokens
            self._at(self._machines[place].run(turn, now_s), done(facade, assignment, place))

        def done(facade: Balancer, assignment: Assignment, place: int) -> Callable[[float], None]:
            def settle(now_s: float) -> None:
                facade.settle(assignment, Outcome.SUCCESS, now_s)
                self._held[place] -= assignment.tokens
                following = self._streams.following(turn)
                self._at(now_s + self._streams.pause_s(), self._asks(following, advance))

            return settle

        return ask

    def _choose(self, facade: Balancer, turn: Turn, now_s: float) -> Assignment:
        prefix = chain(turn.text, b"") if self._policy == "affinity" else NO_PREFIX
        # The facade does not know how long the answer is going to be.
        tokens = estimate_tokens(sum(map(len, turn.text)), None)
        request = Request(MODEL, tokens, prefix)
        start_ns = time.perf_counter_ns()
        choice = facade.choose(request, now_s)
        self._choices_ns.append(time.perf_counter_ns() - start_ns)
        if not isinstance(choice, Assignment):
            raise AssertionError(f"all machines are there, and none was chosen: {choice}")
        return choice

    def _report(self, now_s: float) -> None:
        held = list(self._held)
        if 2 * self._asked > self._requests:
            self._ratios.append(max(held) * len(held) / max(1, sum(held)))

        def arrive(now_s: float) -> None:
            sequence = round(1000 * now_s)
            for (machine_id, place), directory in itertools.product(self._places.items(), self._directories):
                load = ModelLoad(MODEL, 0, 0, held[place])
                directory.apply(LoadReport(machine_id, 1, sequence, (load,)), now_s)

        self._at(now_s + REPORT_DELAY_S, arrive)
        self._at(now_s + REPORT_EVERY_S, self._report)

    def _figures(self) -> Figures:
        blocks = sum(one.blocks for one in self._machines)
        worked = [one.worked_s for one in self._machines]
        return Figures(
            self._workload.name,
            self._policy,
            len(self._machines),
            self._count,
            self._asked,
            quantile(self._choices_ns, 0.5) / 1e3,
            quantile(self._choices_ns, 0.99) / 1e3,
            sum(one.hit_blocks for one in self._machines) / blocks,
            self._single_hits / blocks,
            max(worked) * len(worked) / sum(worked),
            sum(self._ratios) / len(self._ratios) if self._ratios else float("nan"),
        )


def requests(streams: int, given: argparse.Namespace) -> int:
    """How many a simulation makes."""
    at_least: int = given.requests
    return max(at_least, 2 * streams)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=levels, default=(4, 32, 100, 1000), help="sizes of the mesh")
    parser.add_argument("--streams-per-machine", type=positive, default=100)
    parser.add_argument(
        "--requests", type=positive, default=40_000, help="of a simulation, at least; two of each stream"
    )
    parser.add_argument("--workloads", type=among(tuple(WORKLOADS)), default=tuple(WORKLOADS))
    parser.add_argument("--policies", type=among(POLICIES), default=POLICIES)
    parser.add_argument("--facades", type=positive, default=1, help="each sees only its own requests, and reports")
    parser.add_argument("--cache-blocks", type=positive, default=2048, help="of 256 bytes, on each machine")
    parser.add_argument("--max-hashes", type=positive, default=BalancerSettings().max_hashes, help="of the balancer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add", type=Path, help="show the simulations of an earlier --json as well")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--plot", type=Path, help="an SVG file to write")
    return parser


def main() -> None:
    given = options().parse_args()
    runs = list(itertools.product(given.workloads, given.policies, given.machines))
    earlier = json.loads(given.add.read_text(encoding="utf-8"))["simulations"] if given.add else []
    found = [Figures(**one) for one in earlier]
    # First, while there is little in memory for the garbage collector to look through.
    membership = [measure_membership(machines) for machines in given.machines]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for workload, policy, machines in runs:
            streams = machines * given.streams_per_machine
            name = f"{workload}, {policy}, {machines} machines"
            task = progress.add_task(name, total=requests(streams, given))
            simulation = Simulation(WORKLOADS[workload], policy, machines, streams, given)
            found.append(simulation.run(partial(progress.advance, task)))
    if given.json:
        figures = {"machine": this_machine(), "simulations": list(map(asdict, found))}
        json.dump(figures | {"membership": list(map(asdict, membership))}, sys.stdout, indent=1)
    else:
        print(table(found), membership_table(membership), sep="\n\n")
    if given.plot:
        print(draw(found, given.plot), file=sys.stderr)


if __name__ == "__main__":
    main()
