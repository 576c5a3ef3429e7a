"""Whether a request that failed is tried on another machine, and how soon.

A budget bounds what retries add to the load of a mesh that is failing already: they are a share of the requests, as in
gRPC's retry throttling (gRFC A6) and Finagle's ``RetryBudget``. Waits have full jitter, so that requests that failed
together do not come back together (Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from mantler.errors import TABLE, ErrorCode

_OURS = frozenset({ErrorCode.RATE_LIMIT_EXCEEDED, ErrorCode.STORE_UNAVAILABLE, ErrorCode.DEADLINE_EXCEEDED})
"""A retry may help the client later, and another machine does not: these are about the key, the facade's own database
and a time that is over."""
GOES_ON = frozenset({ErrorCode.MACHINE_OFFLINE, ErrorCode.RUNTIME_UNAVAILABLE, ErrorCode.INTERNAL_ERROR})
"""Failures of a machine or a facade, after which another one can go on with a stream."""


def may_retry(code: ErrorCode, *, delivered: bool) -> bool:
    """Whether another machine may be tried.

    Args:
        delivered: whether the client has got any part of the answer, which another machine would not go on with.
    """
    return not delivered and TABLE[code].retryable and code not in _OURS


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a retry."""

    base_s: float = 0.02
    max_s: float = 1.0

    def wait_s(self, attempt: int, remaining_s: float, draw: random.Random) -> float | None:
        """A random wait up to ``base_s`` doubled for each earlier retry; ``None`` if the deadline comes first.

        Args:
            attempt: retries before this one.
            remaining_s: until the request's deadline.
        """
        # Doubling 32 times passes every sensible maximum; more would overflow in the end.
        wait_s = draw.random() * min(self.max_s, self.base_s * 2 ** min(attempt, 32))
        return wait_s if wait_s < remaining_s else None


class RetryBudget:
    """A bucket of tokens: a request puts a share of one in, time puts some in, and a retry takes one out.

    Over any time there are at most ``burst + share * requests + min_per_s * seconds`` retries.

    Args:
        share: retries for each request.
        min_per_s: retries that are there without any request, so that a facade with few of them can retry too.
        burst: the most that the bucket holds, which it does at the start.
    """

    def __init__(self, now_s: float, *, share: float = 0.2, min_per_s: float = 1.0, burst: float = 10.0) -> None:
        self._share = share
        self._min_per_s = min_per_s
        self._burst = burst
        self._tokens = burst
        self._filled_at_s = now_s

    def count_request(self, now_s: float) -> None:
        """A request came in: the first try, not its retries."""
        self._fill(now_s, self._share)

    def take(self, now_s: float) -> bool:
        """Takes one retry out, or changes nothing and returns ``False``."""
        self._fill(now_s, 0.0)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _fill(self, now_s: float, tokens: float) -> None:
        passed_s = max(0.0, now_s - self._filled_at_s)
        self._tokens = min(self._burst, self._tokens + tokens + self._min_per_s * passed_s)
        self._filled_at_s = max(self._filled_at_s, now_s)
