"""Requests and tokens per minute, per key.

The limiter is GCRA (the generic cell rate algorithm, ITU-T I.371) with a burst of one minute: a key that was idle may
use its whole minute at once and then gets one unit back every ``60 / limit`` seconds. A sliding window would be
stricter (GCRA lets a key spend its burst and what flows back within the same minute), but it keeps a time for each
request. GCRA keeps one number per key, the time to wait is exact, a refund is a subtraction, and the same arithmetic
fits one atomic step in a shared store later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

PERIOD_NS = 60 * 10**9
MAX_DEBT_NS = 10 * PERIOD_NS
"""What was used beyond a limit keeps a key waiting for so long at most."""
_SWEEP_AT = 1024


@dataclass(frozen=True, slots=True)
class LimitState:
    """Where a key stands, in the terms of the ``x-ratelimit-*`` headers."""

    limit: int
    """Units per minute."""
    remaining: int
    """Units that would be admitted now."""
    reset_s: float
    """Seconds until the whole limit is there again."""
    retry_after_s: float
    """Seconds until as much as was asked for would be admitted: 0 if it would be now."""


class RateLimiter:
    """Counts what keys use of something, in units. Forgets a key once its whole limit is there again.

    Args:
        clock_ns: a monotonic clock in nanoseconds. Whole numbers, so that the waits are exact.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock_ns = clock_ns
        # Per key: when its whole limit is there again (GCRA's theoretical arrival time).
        self._full_at_ns: dict[str, int] = {}
        self._sweep_at = _SWEEP_AT

    def __len__(self) -> int:
        """Keys that are remembered."""
        return len(self._full_at_ns)

    def reserve(self, key_id: str, limit: int, units: int = 1) -> bool:
        """Takes ``units`` out of the key's ``limit`` per minute, or changes nothing and returns ``False``.

        More units than the limit are as many as the limit, or nobody could ever have them.
        """
        now = self._clock_ns()
        full_at = max(self._full_at_ns.get(key_id, now), now) + min(units, limit) * _interval_ns(limit)
        if full_at > now + _burst_ns(limit):
            return False
        self._full_at_ns[key_id] = full_at
        self._sweep(now)
        return True

    def refund(self, key_id: str, limit: int, units: int = 1) -> None:
        """Gives back what was reserved and not used."""
        self.settle(key_id, limit, reserved=units, used=0)

    def settle(self, key_id: str, limit: int, *, reserved: int, used: int) -> None:
        """Replaces what was reserved by what was used. What is beyond the limit is waited for later."""
        now = self._clock_ns()
        full_at = self._full_at_ns.get(key_id)
        if full_at is None:
            if used <= reserved:
                return
            full_at = now
        full_at += (used - min(reserved, limit)) * _interval_ns(limit)
        if full_at > now:
            self._full_at_ns[key_id] = min(full_at, now + _burst_ns(limit) + MAX_DEBT_NS)
        else:
            del self._full_at_ns[key_id]

    def state(self, key_id: str, limit: int, units: int = 1) -> LimitState:
        """Where the key stands now, and how long ``units`` have to wait."""
        now = self._clock_ns()
        owed_ns = max(self._full_at_ns.get(key_id, now) - now, 0)
        interval_ns, burst_ns = _interval_ns(limit), _burst_ns(limit)
        return LimitState(
            limit=limit,
            # The limit may have been lowered since the requests came.
            remaining=max((burst_ns - owed_ns) // interval_ns, 0),
            reset_s=owed_ns / 1e9,
            retry_after_s=max(owed_ns + min(units, limit) * interval_ns - burst_ns, 0) / 1e9,
        )

    def _sweep(self, now: int) -> None:
        if len(self._full_at_ns) < self._sweep_at:
            return
        self._full_at_ns = {key_id: full_at for key_id, full_at in self._full_at_ns.items() if full_at > now}
        # Twice what is in use: the cost of a sweep is spread over as many requests as it looks at.
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._full_at_ns))


def _interval_ns(limit: int) -> int:
    return -(-PERIOD_NS // limit)


def _burst_ns(limit: int) -> int:
    return limit * _interval_ns(limit)
