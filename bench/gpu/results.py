"""All that one run has found out, as a file for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu.figures import DecodeFigures, MixedFigures
from bench.gpu.limit import Traffic
from bench.gpu.said import Said


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """The figures of ``name``, beside what the device's memory allows."""

    name: str
    figures: DecodeFigures
    traffic: Traffic
    step_bytes: float
    limit_share: float | None
    """``None`` where the bandwidth was not measured."""


@dataclass(frozen=True, slots=True)
class MixedRow:
    """The figures of ``name``."""

    name: str
    figures: MixedFigures


@dataclass(slots=True)
class Results:
    """Grows while the benchmark runs."""

    date: str
    command: str
    model: str
    machine: dict[str, str]
    """What everything ran on, with versions."""
    load: dict[str, Any]
    bandwidth: float | None = None
    """Bytes per second."""
    decode: list[DecodeRow] = field(default_factory=list)
    mixed: list[MixedRow] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """What was not measured, and why."""

    def take(self, said: Said, name: str, traffic: Traffic | None) -> None:
        """Takes in what a process said of ``name``, or of what it calls itself. ``traffic`` is needed for decoding."""
        name = said.get("name") or name
        match said["said"]:
            case "versions":
                self.machine |= {key: value for key, value in said.items() if key != "said"}
            case "bandwidth":
                self.bandwidth = said["bytes_per_s"]
            case "decode":
                assert traffic is not None
                self.decode.append(self._decoded(name, DecodeFigures(**said["figures"]), traffic))
            case "mixed":
                self.mixed.append(MixedRow(name, MixedFigures(**said["figures"])))
            case "absent":
                self.absent[f"{name}, {said['what']}"] = said["why"]

    def save(self, path: Path) -> None:
        """Writes JSON. A reader never sees half a file."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        part.replace(path)

    def _decoded(self, name: str, figures: DecodeFigures, traffic: Traffic) -> DecodeRow:
        batch, context = figures.batch, figures.context
        share = None
        if self.bandwidth is not None:
            share = traffic.limit_share(batch, context, figures.step_ms / 1000, self.bandwidth)
        return DecodeRow(name, figures, traffic, traffic.step_bytes(batch, context), share)
