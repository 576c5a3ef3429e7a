"""What every request that computes goes through, however it came: key, place, model, limits, machines.

REST (:mod:`facade.generation`, :mod:`facade.routes.tokens`) and the edge (:mod:`facade.edge.generation`) read requests
and write answers. What lies between is here, and knows neither HTTP nor gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

from facade.auth import authenticate, require_model
from facade.cache_salt import cache_salt
from facade.exchange import Exchange
from facade.limits import Reservation, reserve
from facade.merged import generate_all, prompt_text
from facade.served import explaining
from facade.services import Services
from facade.tally import Tally
from mantler.messages import Event, GenerateRequest
from mantler.tenancy.store import KeyRecord

_LEAST_S = 0.001
"""What is left at least: the place ends the request whose time is up, not a machine that was given none."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and until when. :func:`admitted` makes one."""

    services: Services
    exchange: Exchange
    key: KeyRecord
    deadline_s: float
    """By the clock of the event loop."""

    @property
    def remaining_s(self) -> float:
        """What machines have until the deadline."""
        return max(_LEAST_S, self.deadline_s - asyncio.get_running_loop().time())

    @asynccontextmanager
    async def using(self, model: str, requests: Sequence[GenerateRequest] = ()) -> AsyncIterator[Reservation]:
        """Holds one request, and as many tokens as ``requests`` look like, out of the key's limits for the body.

        Raises MODEL_NOT_ALLOWED and RATE_LIMIT_EXCEEDED. Where the body does not find the model, the error says what
        the key may use instead.
        """
        self.exchange.model = model
        require_model(self.key, model)
        with reserve(self.services.limiters, self.key, self.exchange, requests) as reservation:
            async with explaining(self.services.client, self.key, model):
                yield reservation

    @asynccontextmanager
    async def generation(
        self, requests: Sequence[GenerateRequest], *, echo: bool = False
    ) -> AsyncIterator[tuple[AsyncIterator[Event], Tally]]:
        """The events of ``requests``, which differ in their prompts only, and what is to count each of them.

        Leaving cancels what the machines still do. Raises what :meth:`using` and the machines raise.

        Args:
            echo: whether each choice begins with its prompt.
        """
        client = self.services.client
        salt = cache_salt(self.key, requests[0].cache_salt)
        wanted = [replace(each, cache_salt=salt) for each in requests]
        async with self.using(wanted[0].model, wanted) as reservation:
            tally = Tally(self.exchange, reservation, n=wanted[0].n, prompts=len(wanted))
            echoes = [await prompt_text(client, each, self.key.machines) for each in wanted] if echo else ()
            answer = generate_all(client, wanted, echoes, self.remaining_s, self.key.machines)
            async with aclosing(answer) as events:
                yield events, tally


@asynccontextmanager
async def admitted(
    services: Services, exchange: Exchange, authorization: str | None, timeout_s: float | None
) -> AsyncIterator[Caller]:
    """A caller with a good key, who has a place among the open requests while the body runs.

    Raises INVALID_API_KEY, STORE_UNAVAILABLE, RUNTIME_UNAVAILABLE without a place, and DEADLINE_EXCEEDED.

    Args:
        authorization: the value of the header or the metadata of this name.
        timeout_s: what the client gives the request, if it says so. ``request_timeout_s`` bounds it.
    """
    deadline_s = asyncio.get_running_loop().time() + services.limit_s(timeout_s)
    key = await authenticate(services.keys, authorization, exchange)
    async with services.admission.admit(deadline_s):
        yield Caller(services, exchange, key, deadline_s)
