"""What the soak test has seen of the server, and whether that is good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.soak_client import ERROR, OK, Tally

JUDGED_MINUTES = 10.0
"""Shorter runs say how memory grew, but do not judge it: a server touches its memory bit by bit at first."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the server."""

    at_s: float
    """Since the start of the load."""
    runtime_mb: float
    """Resident memory."""
    facade_mb: float
    slots_used: int
    queue: int
    ok: int
    refused: int
    cancelled: int
    errors: int


@dataclass(frozen=True, slots=True)
class End:
    """The server after the load."""

    idle: bool
    """Whether every slot was free and nothing queued within the time allowed."""
    restarted: tuple[str, ...]
    """Processes that are not those of the start."""
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold; ``None`` where it is not judged."""

    name: str
    good: bool | None
    found: str


def checks(samples: Sequence[Sample], tally: Tally, end: End, minutes: float, max_growth_mb: float) -> list[Check]:
    """All checks, good or bad."""
    errors, fine = tally.total(ERROR), tally.total(OK)
    found = [
        Check("requests were answered", fine > 0, f"{fine} answered, {tally.tokens} tokens"),
        Check("no unexpected error", errors == 0, f"{errors} errors"),
        Check("every slot free in the end", end.idle, "idle" if end.idle else "slots or the queue are still in use"),
        Check("no process was restarted", not end.restarted, ", ".join(end.restarted) or "none"),
        Check("it stopped when asked", end.exit_code == 0, f"exit code {end.exit_code}"),
    ]
    third = samples[len(samples) - len(samples) // 3 :]
    at = [sample.at_s for sample in third]
    for name, values in (
        ("runtime", [sample.runtime_mb for sample in third]),
        ("facade", [sample.facade_mb for sample in third]),
    ):
        grown = growth(at, values)
        judged = grown <= max_growth_mb if minutes >= JUDGED_MINUTES else None
        bound = f"bound {max_growth_mb:g} MB" if judged is not None else f"judged from {JUDGED_MINUTES:g} minutes on"
        found.append(Check(f"memory of the {name} is flat", judged, f"{grown:+.1f} MB in the last third ({bound})"))
    return found


def growth(at: Sequence[float], values: Sequence[float]) -> float:
    """How much ``values`` grew from the first to the last time of ``at``, by a least-squares line."""
    if len(at) < 2 or at[-1] == at[0]:
        return 0.0
    middle, mean = sum(at) / len(at), sum(values) / len(values)
    spread = sum((time - middle) ** 2 for time in at)
    slope = sum((time - middle) * (value - mean) for time, value in zip(at, values, strict=True)) / spread
    return slope * (at[-1] - at[0])
