"""A key's limits of requests and tokens per minute around one request."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from facade.exchange import Exchange
from mantler.errors import ErrorCode, MantlerError
from mantler.mesh.load import BYTES_PER_TOKEN
from mantler.messages import GenerateRequest
from mantler.routing.prompt_bytes import prompt_bytes
from mantler.tenancy.limits import RateLimiter
from mantler.tenancy.store import KeyRecord


@dataclass(frozen=True, slots=True)
class Limiters:
    """What the keys of this process have used."""

    requests: RateLimiter = field(default_factory=RateLimiter)
    tokens: RateLimiter = field(default_factory=RateLimiter)


class Reservation:
    """What one request has taken out of the limits."""

    def __init__(self) -> None:
        self.settled = False

    def settle(self) -> None:
        """The runtime works on the request: it counts, whatever becomes of it."""
        self.settled = True


@contextlib.contextmanager
def reserve(
    limiters: Limiters, key: KeyRecord, exchange: Exchange, requests: Iterable[GenerateRequest] = ()
) -> Iterator[Reservation]:
    """Takes one request, and as many tokens as ``requests`` look like, out of ``key``'s limits.

    Raises RATE_LIMIT_EXCEEDED where one of them is used up, and takes nothing out of the other then.

    A request that fails before it is settled is given back: the runtime was down, its queue was full, it refused the
    input. One whose client leaves before that counts, or leaving early would get around the limit. In the end tokens
    are counted as they were used, whatever the end is.
    """
    reservation = Reservation()
    with contextlib.ExitStack() as limits:
        if key.requests_per_minute is not None:
            limit = _Limit(limiters.requests, "requests", key.id, key.requests_per_minute, 1, exchange)
            limits.enter_context(limit.taken(reservation))
        if key.tokens_per_minute is not None and (asked := tuple(requests)):
            estimate = estimated_tokens(asked)
            limit = _Limit(limiters.tokens, "tokens", key.id, key.tokens_per_minute, estimate, exchange)
            limits.enter_context(limit.counted(reservation))
        yield reservation


def estimated_tokens(requests: Iterable[GenerateRequest]) -> int:
    """What ``requests`` may take at least: their prompts, as far as bytes tell, and the outputs that they ask for."""
    total = 0
    for request in requests:
        prompt = sum(len(part) for part in prompt_bytes(request.prompt))
        total += math.ceil(prompt / BYTES_PER_TOKEN) + request.n * (request.stop.max_tokens or 0)
    return max(1, total)


@dataclass(frozen=True, slots=True)
class _Limit:
    """One limit of one key, and what one request wants of it."""

    limiter: RateLimiter
    unit: str
    key_id: str
    per_minute: int
    wanted: int
    exchange: Exchange

    @contextlib.contextmanager
    def taken(self, reservation: Reservation) -> Iterator[None]:
        """Takes it out, and gives it back where the request fails before it is settled."""
        self._take()
        try:
            yield
        except Exception:
            if not reservation.settled:
                self._give_back()
            raise

    @contextlib.contextmanager
    def counted(self, reservation: Reservation) -> Iterator[None]:
        """The same, and counts what was used in the end."""
        with self.taken(reservation):
            try:
                yield
            finally:
                if reservation.settled:
                    used = (self.exchange.prompt_tokens or 0) + (self.exchange.completion_tokens or 0)
                    self.limiter.settle(self.key_id, self.per_minute, reserved=self.wanted, used=used)
                    self._set_headers()

    def _take(self) -> None:
        admitted = self.limiter.reserve(self.key_id, self.per_minute, self.wanted)
        self._set_headers()
        if not admitted:
            raise MantlerError(
                ErrorCode.RATE_LIMIT_EXCEEDED,
                f"The API key's limit of {self.per_minute} {self.unit} per minute is used up.",
                retry_after_s=self.limiter.state(self.key_id, self.per_minute, self.wanted).retry_after_s,
            )

    def _give_back(self) -> None:
        self.limiter.refund(self.key_id, self.per_minute, self.wanted)
        self._set_headers()

    def _set_headers(self) -> None:
        state = self.limiter.state(self.key_id, self.per_minute)
        headers = self.exchange.headers
        headers[f"x-ratelimit-limit-{self.unit}"] = str(state.limit)
        headers[f"x-ratelimit-remaining-{self.unit}"] = str(state.remaining)
        headers[f"x-ratelimit-reset-{self.unit}"] = f"{math.ceil(state.reset_s * 1000) / 1000:g}s"
