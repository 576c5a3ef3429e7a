"""What one request uses, counted event by event: for its line of the log and for its key's limits."""

from __future__ import annotations

from facade.collected import UsageSum
from facade.exchange import Exchange
from facade.limits import Reservation
from mantler.messages import Delta, Event, Started, Usage


class Tally:
    """Of a request for the ``n`` choices of each of its ``prompts``."""

    def __init__(self, exchange: Exchange, reservation: Reservation, *, n: int, prompts: int = 1) -> None:
        self._exchange = exchange
        self._reservation = reservation
        self._n = n
        self._usage = UsageSum(n, prompts)

    def take(self, event: Event) -> None:
        """Counts ``event``. The first one means that the machine works on the request."""
        part = event.body
        if isinstance(part, Delta):
            self._exchange.count_tokens(len(part.token_ids))
            self._reservation.count()
        elif isinstance(part, Started):
            self._reservation.settle()
            # The choices of a prompt share its tokens.
            if event.index % self._n == 0:
                self._exchange.prompt_tokens = (self._exchange.prompt_tokens or 0) + part.prompt_tokens
                self._reservation.count()
        else:
            self._usage.add(event.index, part)

    def total(self) -> Usage:
        """What all of it cost, once every choice has finished."""
        total = self._usage.total()
        self._exchange.prompt_tokens = total.prompt_tokens
        self._exchange.completion_tokens = total.completion_tokens
        return total
