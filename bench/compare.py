"""Measures Mantler and its peers, one after the other, on this machine, with the same weights and as many threads.

Rounds alternate: Mantler, llama-server, OpenVINO GenAI, Mantler, … Each server is started anew for each kind of
workload, with as many slots as that needs. A table, a plot and a JSON file with every single time go into a folder,
the JSON after every workload. Leave the machine alone meanwhile. Peers come from `make bench-peers`.

Examples:
  make bench
  make bench ARGS='--quick'
  make bench ARGS='--rounds 3 --servers mantler,llama-server --workloads chat --concurrency 1,16'
  python -m bench.compare --llama-server ~/llama.cpp/build/bin/llama-server --openvino-python ~/ov/bin/python
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bench import weights
from bench.figures import errors, row
from bench.machine import machine
from bench.options import among, levels, positive
from bench.peers import PEERS, LlamaServer, Mantler, OpenVino, OpenVinoInProcess, Peer, Server, this_mantler
from bench.plot import draw
from bench.process import PeakMemory, StartError
from bench.record import Record, Results
from bench.report import number, write
from bench.stream import Stream
from bench.workloads import Plan, Serving, Workload
from runtime_server.models.errors import PullError

SERVERS = ("mantler", "llama-server", "openvino", "openvino-inprocess")
QUICK = Plan(concurrency=(1, 4), requests_per_stream=1, long_prompts=1, prefixes=1, mixed_streams=4)


def peers(given: argparse.Namespace, plan: Plan) -> list[Peer]:
    """Those that were asked for, in their order."""
    gguf = weights.gguf()
    command = (str(given.mantler),) if given.mantler else this_mantler()
    python = given.openvino_python

    def made(name: str) -> Peer:
        if name == "mantler":
            models = weights.converted(command, weights.CACHE / "bench" / "home")
            return Mantler(command, models, given.threads, tuple(shlex.split(given.mantler_args)))
        if name == "llama-server":
            return LlamaServer(given.llama_server, gguf, given.threads, tuple(shlex.split(given.llama_args)))
        if name == "openvino":
            return OpenVino(python, gguf, given.threads)
        return OpenVinoInProcess(python, gguf, given.threads, plan)

    return [made(name) for name in given.servers]


class Benchmark:
    """Runs everything and keeps what it finds out in ``folder``."""

    def __init__(self, plan: Plan, rounds: int, folder: Path, console: Console, command: str) -> None:
        self._plan = plan
        self._rounds = rounds
        self._folder = folder
        self._console = console
        self.results = Results(datetime.date.today().isoformat(), command, machine(), {}, {}, [])

    def run(self, peers: Sequence[Peer]) -> None:
        """Measures every peer that is there."""
        present = []
        for peer in peers:
            if missing := peer.absent():
                self.results.absent[peer.name] = missing
                self._console.print(f"[yellow]{peer.name} is left out:[/] {escape(missing)}")
            else:
                self.results.servers[peer.name] = peer.about()
                present.append(peer)
        for turn in range(1, self._rounds + 1):
            for peer in present:
                self._console.rule(f"round {turn} of {self._rounds}: {peer.name}")
                self._round(peer, turn)

    def _round(self, peer: Peer, turn: int) -> None:
        log = self._folder / f"{''.join(c if c.isalnum() else '-' for c in peer.name).strip('-')}.log"
        for serving, workloads in groupby(self._plan.workloads(), key=lambda workload: workload.serving):
            try:
                self._serving(peer, turn, serving, list(workloads), log)
            except (StartError, TimeoutError) as error:
                why = str(error) or "a workload took too long"
                self.results.absent[f"{peer.name}, round {turn}, {serving.slots} slots"] = why
                self._console.print(f"[red]{peer.name}:[/] {escape(why)}", soft_wrap=True)

    def _serving(self, peer: Peer, turn: int, serving: Serving, workloads: list[Workload], log: Path) -> None:
        with peer.started(serving, log) as server:
            for workload in workloads:
                record = self._measured(server, peer, turn, workload)
                self.results.records.append(record)
                self.results.save(self._folder / "results.json")
                self._console.print(*summary(record), sep="\n", soft_wrap=True)

    def _measured(self, server: Server, peer: Peer, turn: int, workload: Workload) -> Record:
        with self._console.status(f"{workload.name} …"), PeakMemory(server.pid) as memory:
            streams = server.run(workload, f"round {turn}")
        return Record(peer.name, workload.name, turn, memory.bytes, tuple(Stream(**stream) for stream in streams))


def summary(record: Record) -> Iterator[str]:
    """A line for each label of a record."""
    for label in dict.fromkeys(stream.label for stream in record.streams):
        found = row([record], label)
        yield (
            f"{escape(record.workload)}{': ' + label if label else ''}: {number(found.mean_tokens_per_s, 0)} tokens/s, "
            f"TTFT {number(found.ttft_p50_ms, 0)} / {number(found.ttft_p99_ms, 0)} ms, "
            f"inter-token {number(found.itl_p50_ms, 1)} / {number(found.itl_p99_ms, 1)} ms, "
            f"{number(found.peak_rss_mb, 0)} MB" + (f", [red]{found.errors} errors[/]" if found.errors else "")
        )


def main() -> None:
    given = options().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=True, highlight=False)
    plan = planned(given)
    folder = given.out or weights.CACHE / "bench" / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "bench.compare", *sys.argv[1:]])
    benchmark = Benchmark(plan, given.rounds, folder, console, command)
    interrupted = False
    try:
        benchmark.run(peers(given, plan))
    except KeyboardInterrupt:
        interrupted = True
        console.print("[yellow]interrupted: what was measured is kept[/]")
    except PullError as error:
        sys.exit(f"{error.message} hint: {error.hint}")
    except subprocess.SubprocessError as error:
        sys.exit(f"{error}")
    results = benchmark.results
    if results.records:
        results.save(folder / "results.json")
        page = write(results, folder)
        console.print(f"{draw(results, folder)}", markup=False, soft_wrap=True)
        print(page)
    failed = errors(stream for record in results.records for stream in record.streams)
    if interrupted:
        sys.exit(130)
    if failed or not results.records:
        sys.exit("some requests failed; the report names them" if failed else "nothing was measured")


def planned(given: argparse.Namespace) -> Plan:
    """What the flags ask for."""
    if given.quick:
        return replace(QUICK, kinds=given.workloads)
    return Plan(concurrency=given.concurrency, requests_per_stream=given.requests, kinds=given.workloads)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=positive, default=2, help="times each server is measured (default: 2)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: .cache/bench/ and the time)")
    parser.add_argument("--threads", type=positive, default=2, help="threads of each server (default: 2)")
    parser.add_argument("--servers", type=among(SERVERS), default=SERVERS, help=f"some of {','.join(SERVERS)}")
    kinds = Plan().kinds
    parser.add_argument("--workloads", type=among(kinds), default=kinds, help=f"some of {','.join(kinds)}")
    parser.add_argument("--concurrency", type=levels, default=Plan().concurrency, help="of chat (default: 1,4,16,32)")
    parser.add_argument(
        "--requests", type=positive, default=2, help="of each stream of chat, 8 in all at least (default: 2)"
    )
    parser.add_argument("--quick", action="store_true", help="few requests: to see whether everything works")
    parser.add_argument("--mantler", type=Path, help="the mantler command (default: this checkout)")
    parser.add_argument("--mantler-args", default="", metavar="ARGS", help="more flags of mantler up, in one word")
    parser.add_argument(
        "--llama-server",
        type=Path,
        default=Path(os.environ.get("BENCH_LLAMA_SERVER") or PEERS / "llama-server"),
        help="the program (default: BENCH_LLAMA_SERVER, or what `make bench-peers` built)",
    )
    parser.add_argument("--llama-args", default="", metavar="ARGS", help="more flags of llama-server, in one word")
    parser.add_argument(
        "--openvino-python",
        type=Path,
        default=Path(os.environ.get("BENCH_OPENVINO_PYTHON") or PEERS / "openvino" / "bin" / "python"),
        help="a Python with openvino-genai and aiohttp (default: BENCH_OPENVINO_PYTHON, or that of `make bench-peers`)",
    )
    return parser


if __name__ == "__main__":
    main()
