"""What was measured: one record per server, workload and round, and the file that holds them all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.stream import Ask, Stream
from bench.workloads import Workload


@dataclass(frozen=True, slots=True)
class Record:
    """One run of a workload. Times of its streams count from its start."""

    server: str
    workload: str
    round: int
    peak_rss_bytes: int
    """Of the server's processes together, while the workload ran."""
    streams: tuple[Stream, ...]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Record:
        """The opposite of :func:`dataclasses.asdict`."""
        return cls(**{**value, "streams": tuple(Stream(**stream) for stream in value["streams"])})


@dataclass(frozen=True, slots=True)
class Results:
    """All that one run of the benchmark has found out."""

    date: str
    command: str
    machine: dict[str, str]
    servers: dict[str, str]
    """What each server is and how it was started, in the order of the tables."""
    absent: dict[str, str]
    """Servers that were left out, and why."""
    records: list[Record]

    def save(self, path: Path) -> None:
        """Writes JSON. A reader never sees half a file."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self)), encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Reads what :meth:`save` wrote."""
        value = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**value, "records": [Record.from_json(record) for record in value["records"]]})


async def run(workload: Workload, ask: Ask, seed: str, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Runs a workload. Returns its streams as JSON objects with times from the start on."""
    start = clock()
    return [stream.since(start) for stream in await workload.run(ask, f"{seed} {workload.name}")]
