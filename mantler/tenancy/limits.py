"""Requests and tokens per minute, per key.

The limiter is GCRA (the generic cell rate algorithm, ITU-T I.371) with a burst of one minute: a key that was idle may
use its whole minute at once and then gets one unit back every ``60 / limit`` seconds. A sliding window would be
stricter (GCRA lets a key spend its burst and what flows back within the same minute), but it keeps a time for each
request. GCRA keeps one number per key, the time to wait is exact, and the same arithmetic fits one atomic step in a
shared store later.

What a request is going to use is reserved before it begins. What it does not use is given back, and what it uses beyond
that is charged when it is used, whatever is left: it becomes debt, which later requests wait for.
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


@dataclass(frozen=True, slots=True)
class Hold:
    """Units that were reserved."""

    key_id: str
    limit: int
    units: int
    back_at_ns: int
    """When the last of them has flowed back."""


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

    def reserve(self, key_id: str, limit: int, units: int = 1) -> Hold | None:
        """Takes ``units`` out of the key's ``limit`` per minute, or changes nothing and returns ``None``.

        More units than the limit are as many as the limit, or nobody could ever have them.
        """
        now = self._clock_ns()
        units = min(units, limit)
        full_at = max(self._full_at_ns.get(key_id, now), now) + units * _interval_ns(limit)
        if full_at > now + _burst_ns(limit):
            return None
        self._keep(key_id, full_at, now)
        return Hold(key_id, limit, units, full_at)

    def refund(self, hold: Hold, units: int) -> None:
        """Gives back ``units`` of ``hold``, once, as far as they have not flowed back by themselves."""
        now = self._clock_ns()
        full_at = self._full_at_ns.get(hold.key_id, now)
        full_at -= min(units * _interval_ns(hold.limit), max(hold.back_at_ns - now, 0))
        if full_at > now:
            self._full_at_ns[hold.key_id] = full_at
        else:
            self._full_at_ns.pop(hold.key_id, None)

    def charge(self, key_id: str, limit: int, units: int) -> None:
        """Takes ``units`` that are used already. What is beyond the limit is waited for later."""
        now = self._clock_ns()
        full_at = max(self._full_at_ns.get(key_id, now), now) + units * _interval_ns(limit)
        self._keep(key_id, min(full_at, now + _burst_ns(limit) + MAX_DEBT_NS), now)

    def state(self, key_id: str, limit: int, units: int = 1) -> LimitState:
        """Where the key stands now, and how long ``units`` have to wait."""
        now = self._clock_ns()
        owed_ns = max(self._full_at_ns.get(key_id, now) - now, 0)
        interval_ns, burst_ns = _interval_ns(limit), _burst_ns(limit)
        return LimitState(
            limit=limit,
            # Debt, or the limit was lowered since.
            remaining=max((burst_ns - owed_ns) // interval_ns, 0),
            reset_s=owed_ns / 1e9,
            retry_after_s=max(owed_ns + min(units, limit) * interval_ns - burst_ns, 0) / 1e9,
        )

    def _keep(self, key_id: str, full_at: int, now: int) -> None:
        self._full_at_ns[key_id] = full_at
        if len(self._full_at_ns) < self._sweep_at:
            return
        self._full_at_ns = {key_id: full_at for key_id, full_at in self._full_at_ns.items() if full_at > now}
        # Twice what is in use: the cost of a sweep is spread over as many requests as it looks at.
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._full_at_ns))


def _interval_ns(limit: int) -> int:
    return -(-PERIOD_NS // limit)


def _burst_ns(limit: int) -> int:
    return limit * _interval_ns(limit)
