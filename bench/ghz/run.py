"""Load-tests a running runtime with ghz (https://ghz.sh) and prints a summary. ``make load`` runs it.

It needs ghz and the standard library only. ghz learns the services from the server's reflection. A single
configuration also runs by hand: ``ghz --config bench/ghz/generate.json 127.0.0.1:50051``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CONCURRENCIES = (1, 4, 16, 32)
REQUESTS_PER_WORKER = 4
MIN_REQUESTS = 8
RUN_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Result:
    """One run. Latencies are of whole calls, to the end of their streams."""

    name: str
    requests: int
    failed: int
    requests_per_s: float
    tokens_per_s: float | None
    p50_ms: float
    p95_ms: float
    p99_ms: float


def main() -> None:
    """Runs unary health checks, then streams at each concurrency. Exits with 1 if a call failed."""
    options = _options()
    results = [run(options.ghz, "health", _config("health"), options.runtime)]
    for concurrency in options.concurrency:
        config = _config("generate")
        config["data"]["model"] = options.model
        config["concurrency"] = concurrency
        config["total"] = max(MIN_REQUESTS, concurrency * options.rounds)
        results.append(run(options.ghz, f"generate, {concurrency} at once", config, options.runtime))
    print(table(results))
    if any(result.failed for result in results):
        sys.exit("Some calls failed; their statuses stand above.")


def run(ghz: Path, name: str, config: dict[str, Any], runtime: str) -> Result:
    """Runs ghz with ``config``. Exits when it cannot run or stops half-way."""
    print(f"{name}: {config['total']} calls of {config['call']} …", file=sys.stderr, flush=True)
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(config, file)
        file.flush()
        command = [str(ghz), "--config", file.name, "--format", "json", runtime]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    if done.returncode != 0:
        sys.exit(f"ghz failed on {name}:\n{done.stdout}{done.stderr}")
    report = json.loads(done.stdout)
    for status, count in report["statusCodeDistribution"].items():
        if status != "OK":
            print(f"  {count} calls ended with {status}", file=sys.stderr)
    return summarise(name, report, config["data"].get("stop", {}).get("max_tokens"))


def summarise(name: str, report: dict[str, Any], tokens_per_call: int | None) -> Result:
    """The numbers of ghz's JSON report. With ``ignore_eos`` every finished call has ``tokens_per_call`` tokens."""
    good = report["statusCodeDistribution"].get("OK", 0)
    seconds = report["total"] / 1e9
    latency_ms = {entry["percentage"]: entry["latency"] / 1e6 for entry in report["latencyDistribution"] or ()}
    return Result(
        name=name,
        requests=report["count"],
        failed=report["count"] - good,
        requests_per_s=good / seconds,
        tokens_per_s=None if tokens_per_call is None else good * tokens_per_call / seconds,
        p50_ms=latency_ms.get(50, float("nan")),
        p95_ms=latency_ms.get(95, float("nan")),
        p99_ms=latency_ms.get(99, float("nan")),
    )


def table(results: Sequence[Result]) -> str:
    """The summary, one line per run."""
    lines = [f"{'run':24} {'calls':>6} {'failed':>6} {'calls/s':>9} {'tokens/s':>9} {'p50':>9} {'p95':>9} {'p99':>9}"]
    for result in results:
        tokens = "" if result.tokens_per_s is None else f"{result.tokens_per_s:.1f}"
        latencies = " ".join(f"{f'{ms:.1f} ms':>9}" for ms in (result.p50_ms, result.p95_ms, result.p99_ms))
        lines.append(
            f"{result.name:24} {result.requests:6} {result.failed:6} "
            f"{result.requests_per_s:9.2f} {tokens:>9} {latencies}"
        )
    return "\n".join(lines)


def _config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return config


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ghz", type=Path, default=HERE.parent.parent / ".cache/bin/ghz", help="the ghz program")
    parser.add_argument("--runtime", default="127.0.0.1:50051", help="address of the runtime (default: %(default)s)")
    parser.add_argument("--model", default="smollm2:135m", help="model to generate with (default: %(default)s)")
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=CONCURRENCIES, help="streams at once (default: 1 4 16 32)"
    )
    parser.add_argument(
        "--rounds", type=int, default=REQUESTS_PER_WORKER, help="calls per stream (default: %(default)s)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
