"""``mantler drill``: break machines on purpose and see whether anybody notices."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import click

from mantler.cli import pull
from mantler.cli.commands import Command
from mantler.cli.drill.schedule import Harm
from mantler.cli.drill.verdict import Times, Verdict
from mantler.cli.errors import EXIT_FAILED
from mantler.cli.options import json_option, option, settings_options
from mantler.cli.settings import read
from mantler.cli.terminal import note, print_json, print_table
from mantler.cli.values import Number
from mantler.config import RuntimeSettings

_KV_MEMORY_MB = 200
"""Of each runtime: several stand on one machine."""


@click.command(cls=Command)
@settings_options(RuntimeSettings, only=("home",))
@option(
    "--machines",
    env="MANTLER_DRILL_MACHINES",
    help="Runtimes to start on this host.",
    type=Number(int, 2, 16),
    default=3,
)
@option(
    "--streams", env="MANTLER_DRILL_STREAMS", help="Streams that run at once.", type=Number(int, 1, 1000), default=24
)
@option("--seconds", env="MANTLER_DRILL_SECONDS", help="How long.", type=Number(int, 5, 86_400), default=30)
@option("--every", env="MANTLER_DRILL_EVERY", help="Seconds from fault to fault.", type=Number(int, 1, 3600), default=5)
@option(
    "--seed", env="MANTLER_DRILL_SEED", help="Another one breaks other machines.", type=Number(int, 0, 10**9), default=1
)
@option(
    "--harm",
    "harms",
    env="MANTLER_DRILL_HARM",
    help="What is done, in turns; may be given several times.",
    shown_default="all of them",
    type=click.Choice([harm.value for harm in Harm]),
    multiple=True,
)
@json_option
def drill(
    flags: dict[str, object],
    machines: int,
    streams: int,
    seconds: int,
    every: int,
    seed: int,
    harms: tuple[str, ...],
    json: bool,
) -> None:
    """Break machines on purpose and count what clients notice.

    Starts runtimes and a facade of its own on this host and streams greedy and drawn answers through them. One runtime
    after the other is killed, frozen, cut off and restarted, and every token is held against the answer of an
    undisturbed run. What runs already on this host is left alone. Exits with 1 if a stream broke, or a token was
    lost or repeated.

    \b
    Examples:
      mantler drill
      mantler drill --streams 200 --seconds 120 --every 5
      mantler drill --harm kill --harm partition
      mantler drill --json
    """
    from mantler.cli.drill.run import Drill, run

    settings = read(RuntimeSettings, flags)
    pull.ensure(settings)
    chosen = tuple(Harm(name) for name in harms) or tuple(Harm)
    wanted = Drill(settings.model[0], machines, streams, float(seconds), float(every), chosen, seed=seed)
    arguments = ["--home", str(settings.home), "--model", wanted.model, "--kv-memory-mb", str(_KV_MEMORY_MB)]
    arguments += ["--threads", "1", "--max-queue", str(max(64, streams))]
    with tempfile.TemporaryDirectory(prefix="mantler-drill-") as folder:
        found = asyncio.run(run(wanted, arguments, Path(folder), note, settings))
    if json:
        print_json({**asdict(found), "good": found.good})
    else:
        _show(found)
    sys.exit(0 if found.good else EXIT_FAILED)


def _shown(times: Times) -> str:
    return f"{times.p50_s:.1f} s median, {times.max_s:.1f} s most" if times.count else "never"


def _show(found: Verdict) -> None:
    rows = [
        ("streams started", str(found.started)),
        ("finished", str(found.finished)),
        ("went on elsewhere", str(found.resumed)),
        ("refused, to be tried again", str(found.refused)),
        ("broken", str(found.broken)),
        ("tokens", str(found.tokens)),
        ("tokens lost", str(found.lost_tokens)),
        ("tokens repeated", str(found.repeated_tokens)),
        ("faults", str(found.faults)),
        (
            "longest silence of those that went on",
            f"{found.silence_p50_s:.1f} s median, {found.silence_max_s:.1f} s most",
        ),
        ("time to detect", _shown(found.detection)),
        ("time to recover", _shown(found.recovery)),
        *((f"error {code}", str(count)) for code, count in sorted(found.errors.items())),
    ]
    print_table(("", "count"), rows)
    note("No client noticed more than a pause." if found.good else "Clients noticed: see the counts above.")
