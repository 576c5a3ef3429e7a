"""How long to wait before a process that died is started again. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """Delays of ``first_s``, ``first_s * factor``, … up to ``max_s``; from the start after ``healthy_s`` of service."""

    first_s: float = 1.0
    factor: float = 2.0
    max_s: float = 60.0
    healthy_s: float = 60.0


class Backoff:
    """The delays of one process."""

    def __init__(self, policy: BackoffPolicy) -> None:
        self._policy = policy
        self._next_s = policy.first_s

    def after_exit(self, served_s: float) -> float:
        """Seconds to wait, for a process that served for ``served_s`` seconds before it died."""
        policy = self._policy
        if served_s >= policy.healthy_s:
            self._next_s = policy.first_s
        delay_s = min(self._next_s, policy.max_s)
        self._next_s = min(delay_s * policy.factor, policy.max_s)
        return delay_s
