"""Which machine is broken when. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Harm(Enum):
    """What is done to a machine's runtime."""

    KILL = "kill"
    """SIGKILL; it is started again."""
    FREEZE = "freeze"
    """SIGSTOP; it goes on later, knowing nothing."""
    PARTITION = "partition"
    """Nothing comes through to it and nothing back, and no connection ends."""
    RESTART = "restart"
    """SIGTERM, and a new start once it has ended."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One harm to one machine."""

    at_s: float
    machine: int
    harm: Harm
    lasts_s: float
    """Until the machine is started or goes on."""


def schedule(
    *, machines: int, seconds: float, every_s: float, harms: Sequence[Harm], seed: int, lasts_s: float = 4.0
) -> list[Fault]:
    """A fault every ``every_s`` seconds, in turns of ``harms``, each time to a machine that is not broken then.

    One machine is left alone at any time. Raises ``ValueError`` for fewer than two machines.
    """
    if machines < 2:
        raise ValueError(f"machines: must be at least 2, got {machines}")
    draw = random.Random(seed)  # noqa: S311 - the same seed breaks the same machines
    faults: list[Fault] = []
    whole_s = [0.0] * machines
    at_s = every_s
    while at_s + lasts_s < seconds:
        fit = [machine for machine in range(machines) if whole_s[machine] <= at_s]
        if len(fit) > 1:
            machine = draw.choice(fit)
            faults.append(Fault(at_s, machine, harms[len(faults) % len(harms)], lasts_s))
            whole_s[machine] = at_s + 2 * lasts_s
        at_s += every_s
    return faults
