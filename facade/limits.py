"""A key's requests-per-minute limit around one request."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from facade.exchange import Exchange
from mantler.errors import ErrorCode, MantlerError
from mantler.tenancy.limits import RequestLimiter
from mantler.tenancy.store import KeyRecord


class Reservation:
    """One request taken out of a limit."""

    def __init__(self) -> None:
        self.settled = False

    def settle(self) -> None:
        """The runtime works on the request: it counts, whatever becomes of it."""
        self.settled = True


@contextlib.contextmanager
def reserve(limiter: RequestLimiter, key: KeyRecord, exchange: Exchange) -> Iterator[Reservation]:
    """Takes one request out of ``key``'s limit, or raises RATE_LIMIT_EXCEEDED.

    A request that fails before it is settled is given back: the runtime was down, its queue was full, it refused the
    input. One whose client leaves before that counts, or leaving early would get around the limit.
    """
    limit = key.requests_per_minute
    reservation = Reservation()
    if limit is None:
        yield reservation
        return
    admitted = limiter.reserve(key.id, limit)
    _set_headers(limiter, key.id, limit, exchange)
    if not admitted:
        raise MantlerError(
            ErrorCode.RATE_LIMIT_EXCEEDED,
            f"The API key's limit of {limit} requests per minute is used up.",
            retry_after_s=limiter.state(key.id, limit).retry_after_s,
        )
    try:
        yield reservation
    except Exception:
        if not reservation.settled:
            limiter.refund(key.id, limit)
            _set_headers(limiter, key.id, limit, exchange)
        raise


def _set_headers(limiter: RequestLimiter, key_id: str, limit: int, exchange: Exchange) -> None:
    state = limiter.state(key_id, limit)
    exchange.headers["x-ratelimit-limit-requests"] = str(state.limit)
    exchange.headers["x-ratelimit-remaining-requests"] = str(state.remaining)
    exchange.headers["x-ratelimit-reset-requests"] = f"{math.ceil(state.reset_s * 1000) / 1000:g}s"
