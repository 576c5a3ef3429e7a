"""A circuit breaker: keeps requests away from a machine that fails, and finds out when it works again.

::

    CLOSED ── failures in a row, or too large a share of a window ──▶ OPEN
    OPEN ── after a time that doubles with every failed probe ──▶ HALF_OPEN: one request may go, the probe
    HALF_OPEN ── the probe succeeds ──▶ CLOSED            ── it fails ──▶ OPEN

The pattern is Nygard's ("Release It!", 2007).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from mantler.errors import ErrorCode

_BUCKETS = 10
_MACHINE_AT_FAULT = frozenset({ErrorCode.MACHINE_OFFLINE, ErrorCode.RUNTIME_UNAVAILABLE, ErrorCode.INTERNAL_ERROR})


class Outcome(Enum):
    """What a request says about its machine."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEITHER = "neither"
    """The request was at fault, or its client went away."""


def outcome(code: ErrorCode | None) -> Outcome:
    """What an error says about the machine that it came from. ``None`` is no error.

    A full queue is load, which the balancer weighs. A long answer can pass its deadline on a healthy machine; one
    whose runtime hangs loses its lease.
    """
    if code is None:
        return Outcome.SUCCESS
    return Outcome.FAILURE if code in _MACHINE_AT_FAULT else Outcome.NEITHER


class BreakerState(Enum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a breaker opens, and for how long."""

    consecutive_failures: int = 5
    failure_ratio: float = 0.5
    """Of the requests of a window, where there are ``min_requests`` of them."""
    min_requests: int = 20
    window_s: float = 10.0
    open_s: float = 1.0
    """The first time. Doubles with every time that follows upon it."""
    max_open_s: float = 60.0
    probe_timeout_s: float = 30.0
    """After which a probe that has not been heard of does not keep others out."""


@dataclass(slots=True)
class _Bucket:
    number: int
    requests: int = 0
    failures: int = 0


class Breaker:
    """The circuit of one machine. Begins closed."""

    def __init__(self, settings: BreakerSettings = BreakerSettings()) -> None:
        self._settings = settings
        self._state = BreakerState.CLOSED
        self._permit = 0
        self._closed_at_s = 0.0
        self._open_until_s = 0.0
        self._open_for_s = 0.0
        self._probe_until_s: float | None = None
        self._failures_in_a_row = 0
        self._buckets: deque[_Bucket] = deque(maxlen=_BUCKETS)

    def state(self, now_s: float) -> BreakerState:
        """Where it stands. An open breaker becomes half-open by time alone."""
        if self._state is BreakerState.OPEN and now_s >= self._open_until_s:
            return BreakerState.HALF_OPEN
        return self._state

    def available(self, now_s: float) -> bool:
        """Whether a request may begin now."""
        if self._state is BreakerState.CLOSED:
            return True
        return now_s >= self._open_until_s and (self._probe_until_s is None or now_s >= self._probe_until_s)

    def begin(self, now_s: float) -> int:
        """Begins a request, which must be available. Returns the permit that its outcome comes with."""
        if self._state is not BreakerState.CLOSED:
            self._state = BreakerState.HALF_OPEN
            self._permit += 1
            self._probe_until_s = now_s + self._settings.probe_timeout_s
        return self._permit

    def record(self, permit: int, outcome: Outcome, now_s: float) -> None:
        """Takes the outcome of a request. One that began before the last change of state says nothing any more."""
        if permit != self._permit:
            return
        match self._state, outcome:
            case BreakerState.CLOSED, Outcome.SUCCESS | Outcome.FAILURE:
                self._count(outcome is Outcome.FAILURE, now_s)
            case BreakerState.HALF_OPEN, Outcome.SUCCESS:
                self._close(now_s)
            case BreakerState.HALF_OPEN, Outcome.FAILURE:
                self._open(now_s, min(2 * self._open_for_s, self._settings.max_open_s))
            case BreakerState.HALF_OPEN, Outcome.NEITHER:
                self._probe_until_s = None
            case _:
                pass

    def _count(self, failed: bool, now_s: float) -> None:
        settings = self._settings
        number = int(now_s * _BUCKETS / settings.window_s)
        if not self._buckets or self._buckets[-1].number < number:
            self._buckets.append(_Bucket(number))
        self._buckets[-1].requests += 1
        self._buckets[-1].failures += failed
        self._failures_in_a_row = self._failures_in_a_row + 1 if failed else 0
        if not failed:
            return
        recent = [bucket for bucket in self._buckets if bucket.number > number - _BUCKETS]
        requests, failures = sum(b.requests for b in recent), sum(b.failures for b in recent)
        often = requests >= settings.min_requests and failures >= settings.failure_ratio * requests
        if often or self._failures_in_a_row >= settings.consecutive_failures:
            # A machine that fails again soon after it was let in has not recovered.
            again = self._open_for_s > 0 and now_s < self._closed_at_s + self._open_for_s
            self._open(now_s, min(2 * self._open_for_s, settings.max_open_s) if again else settings.open_s)

    def _open(self, now_s: float, open_for_s: float) -> None:
        self._state = BreakerState.OPEN
        self._permit += 1
        self._open_for_s = open_for_s
        self._open_until_s = now_s + open_for_s
        self._probe_until_s = None

    def _close(self, now_s: float) -> None:
        self._state = BreakerState.CLOSED
        self._permit += 1
        self._closed_at_s = now_s
        self._probe_until_s = None
        self._failures_in_a_row = 0
        self._buckets.clear()
