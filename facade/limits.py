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
from mantler.tenancy.limits import Hold, RateLimiter
from mantler.tenancy.store import KeyRecord


@dataclass(frozen=True, slots=True)
class Limiters:
    """What the keys of this process have used."""

    requests: RateLimiter = field(default_factory=RateLimiter)
    tokens: RateLimiter = field(default_factory=RateLimiter)


class Reservation:
    """What one request has taken out of its key's limits, where it has them.

    Args:
        prompt_tokens: what its prompts look like, for as long as the runtime has not counted them.
    """

    def __init__(self, requests: _Limit | None, tokens: _Limit | None, exchange: Exchange, prompt_tokens: int) -> None:
        self._requests = requests
        self._tokens = tokens
        self._exchange = exchange
        self._prompt_tokens = prompt_tokens
        self._settled = False

    def take(self) -> None:
        """Takes out of both limits. Raises RATE_LIMIT_EXCEEDED at the first one that is used up."""
        for limit in (self._requests, self._tokens):
            if limit is not None:
                limit.take()

    def settle(self) -> None:
        """The runtime works on the request: it counts, whatever becomes of it."""
        self._settled = True

    def count(self) -> None:
        """Charges the tokens of the exchange so far, as far as they are beyond the reserved ones."""
        if self._tokens is not None:
            self._tokens.charge(self._exchange.tokens)

    def close(self, *, failed: bool) -> None:
        """Replaces what was reserved by what was used: nothing, where the request failed before it was settled."""
        lost = failed and not self._settled
        if self._requests is not None:
            self._requests.close(0 if lost else 1)
        if self._tokens is not None:
            used = self._exchange.tokens if self._settled else self._prompt_tokens
            self._tokens.close(0 if lost else used)


@contextlib.contextmanager
def reserve(
    limiters: Limiters, key: KeyRecord, exchange: Exchange, requests: Iterable[GenerateRequest] = ()
) -> Iterator[Reservation]:
    """Takes one request, and as many tokens as ``requests`` look like, out of ``key``'s limits.

    Raises RATE_LIMIT_EXCEEDED where one of them is used up, and takes nothing out of the other then.

    A request that fails before it is settled is given back: the runtime was down, its queue was full, it refused the
    input. One whose client leaves before that counts, with its prompt's tokens, or leaving early would get around the
    limits. In the end tokens are counted as they were used, whatever the end is.
    """
    of_requests = of_tokens = None
    prompt_tokens = 0
    if key.requests_per_minute is not None:
        of_requests = _Limit(limiters.requests, "requests", key.id, key.requests_per_minute, 1, exchange)
    if key.tokens_per_minute is not None and (asked := tuple(requests)):
        prompt_tokens = max(1, sum(map(_prompt_tokens, asked)))
        wanted = prompt_tokens + sum(request.n * (request.stop.max_tokens or 0) for request in asked)
        of_tokens = _Limit(limiters.tokens, "tokens", key.id, key.tokens_per_minute, wanted, exchange)
    reservation = Reservation(of_requests, of_tokens, exchange, prompt_tokens)
    failed = False
    try:
        reservation.take()
        yield reservation
    except Exception:
        failed = True
        raise
    finally:
        reservation.close(failed=failed)


def _prompt_tokens(request: GenerateRequest) -> int:
    """Tokens of its prompt, as far as bytes tell; exact where the prompt is token ids."""
    return math.ceil(sum(map(len, prompt_bytes(request.prompt))) / BYTES_PER_TOKEN)


class _Limit:
    """One limit of one key around one request, which wants ``wanted`` units of it. The headers say where it stands."""

    def __init__(
        self, limiter: RateLimiter, unit: str, key_id: str, per_minute: int, wanted: int, exchange: Exchange
    ) -> None:
        self._unit = unit
        self._limiter = limiter
        self._key_id = key_id
        self._per_minute = per_minute
        self._wanted = wanted
        self._exchange = exchange
        self._hold: Hold | None = None
        self._paid = 0
        self._set_headers()

    def take(self) -> None:
        """Reserves what is wanted. Raises RATE_LIMIT_EXCEEDED."""
        self._hold = self._limiter.reserve(self._key_id, self._per_minute, self._wanted)
        if self._hold is None:
            state = self._limiter.state(self._key_id, self._per_minute, self._wanted)
            raise MantlerError(
                ErrorCode.RATE_LIMIT_EXCEEDED,
                f"The API key's limit is {self._per_minute} {self._unit} per minute: {state.remaining} are left now, "
                f"and this request asks for {min(self._wanted, self._per_minute)}.",
                retry_after_s=state.retry_after_s,
            )
        self._paid = self._hold.units
        self._set_headers()

    def charge(self, used: int) -> None:
        """Charges what is used beyond what was paid for."""
        if used > self._paid:
            self._limiter.charge(self._key_id, self._per_minute, used - self._paid)
            self._paid = used

    def close(self, used: int) -> None:
        """What was used in the end is what counts. Nothing, where nothing could be reserved."""
        if self._hold is not None:
            self.charge(used)
            self._limiter.refund(self._hold, max(self._hold.units - used, 0))
            self._set_headers()

    def _set_headers(self) -> None:
        state = self._limiter.state(self._key_id, self._per_minute)
        headers = self._exchange.headers
        headers[f"x-ratelimit-limit-{self._unit}"] = str(state.limit)
        headers[f"x-ratelimit-remaining-{self._unit}"] = str(state.remaining)
        headers[f"x-ratelimit-reset-{self._unit}"] = f"{math.ceil(state.reset_s * 1000) / 1000:g}s"
