"""What simulations of a mesh found, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.mesh_membership import Membership
from bench.report import markdown, number

HEADS = (
    *("workload", "policy", "machines", "streams", "choice p50", "p99"),
    *("hit rate", "of one machine's", "work, busiest / mean", "load, busiest / mean"),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one simulation found."""

    workload: str
    policy: str
    machines: int
    streams: int
    requests: int
    choice_p50_us: float
    choice_p99_us: float
    hit_rate: float
    """Share of the prompts' blocks that the machine had."""
    single_hit_rate: float
    """That of one machine with all the memory."""
    work_ratio: float
    """Slot time over the whole run: the busiest machine's by the mean."""
    load_ratio: float
    """Tokens held at one moment: the busiest machine's by the mean, averaged over the second half of the run."""


def table(found: Sequence[Figures]) -> str:
    """The simulations, a line each."""
    lines = [
        (
            one.workload,
            one.policy,
            f"{one.machines:,}",
            f"{one.streams:,}",
            number(one.choice_p50_us, 1, " µs"),
            number(one.choice_p99_us, 1, " µs"),
            number(100 * one.hit_rate, 1, " %"),
            number(100 * one.hit_rate / one.single_hit_rate, 1, " %"),
            number(one.work_ratio, 2),
            number(one.load_ratio, 2),
        )
        for one in found
    ]
    return markdown(HEADS, lines, left=2)


def membership_table(found: Sequence[Membership]) -> str:
    """The changes of membership, a line for each size."""
    heads = ("machines", "one joins", "one reports", "one leaves", "all join", "all leases end")
    lines = [
        (
            f"{one.machines:,}",
            number(one.join_us, 1, " µs"),
            number(one.report_us, 1, " µs"),
            number(one.leave_us, 1, " µs"),
            number(one.all_join_ms, 1, " ms"),
            number(one.all_expire_ms, 1, " ms"),
        )
        for one in found
    ]
    return markdown(heads, lines, left=0)
