"""What every address of REST that generates does: a body as requests, and their events as an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import hdrs, web

from facade.answer import encode_json, json_answer
from facade.body import read_json_body
from facade.caller import Caller, admitted
from facade.collected import CollectedChoice
from facade.deadline import HEADER as DEADLINE
from facade.deadline import timeout_s
from facade.errors import error_object, public_error
from facade.exchange import Exchange
from facade.spelling import respelled
from facade.sse import DONE, EventStream
from facade.tally import Tally
from facade.web_state import EXCHANGE, SERVICES
from mantler.errors import MantlerError
from mantler.messages import Delta, Event, FinishReason, GenerateRequest, Started, Usage


class Reply(Protocol):
    """How an address writes an answer: as one object, or as the data of a stream's events. Pure."""

    def whole(self, started: Started, choices: Sequence[CollectedChoice], usage: Usage) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        ...

    def begin(self, started: Started) -> Iterable[bytes]:
        """What comes before the first piece of any choice."""
        ...

    def delta(self, index: int, delta: Delta) -> Iterable[bytes]:
        """The next piece of a choice."""
        ...

    def finish(self, index: int, reason: FinishReason) -> bytes:
        """The end of a choice."""
        ...

    def end(self, usage: Usage) -> Iterable[bytes]:
        """What comes after the end of all choices."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asked for."""

    requests: Sequence[GenerateRequest]
    """One for each prompt. They differ in nothing else."""
    reply: Reply
    stream: bool
    spelling: Mapping[str, str]
    """How the client spelled parameters that the runtime's errors name otherwise."""
    echo: bool = False
    """Whether each choice begins with its prompt."""

    @property
    def choices(self) -> int:
        """Of all prompts."""
        return len(self.requests) * self.requests[0].n


Read = Callable[[bytes, Exchange], Asked]
"""Reads a body. Raises ``MantlerError`` for a bad one."""


async def answer_generation(request: web.Request, read: Read) -> web.StreamResponse:
    """One answer, whole or as a stream of server-sent events."""
    services = request.app[SERVICES]
    exchange = request[EXCHANGE]
    asked_s = timeout_s(request.headers.get(DEADLINE))
    async with EventStream(request, services.settings.ping_interval_s) as stream:
        try:
            async with admitted(services, exchange, request.headers.get(hdrs.AUTHORIZATION), asked_s) as caller:
                asked = read(await read_json_body(request, services.settings.max_body_mb * 2**20), exchange)
                response = await _answer(asked, caller, stream)
            # The runtime is done, and so is the place: what is left is between the client and its connection.
            if stream.is_open:
                await stream.finish(DONE)
            return response
        except ConnectionError:
            raise
        except Exception as error:
            if not stream.is_open:
                raise
            # The status is spent: the failure is the last event, and nothing says that all went well.
            known = public_error(error, exchange.request_id)
            exchange.error = known.code
            await stream.finish(encode_json(error_object(known)))
            return stream.response


async def _answer(asked: Asked, caller: Caller, stream: EventStream) -> web.StreamResponse:
    try:
        async with caller.generation(asked.requests, echo=asked.echo) as (events, tally):
            if asked.stream:
                return await _relay(events, asked, stream, tally)
            return await _collect(events, asked, tally)
    except MantlerError as error:
        raise respelled(error, asked.spelling) from error


async def _relay(events: AsyncIterator[Event], asked: Asked, stream: EventStream, tally: Tally) -> web.StreamResponse:
    """Sends events on as they come. The first one decides: until it came, a failure is an HTTP status."""
    stream.watch_silence()
    reply = asked.reply
    begun = False
    async for event in events:
        tally.take(event)
        part = event.body
        if isinstance(part, Delta):
            await stream.send(*reply.delta(event.index, part))
        elif isinstance(part, Started):
            if begun:
                continue
            begun = True
            await stream.open()
            await stream.send(*reply.begin(part))
        else:
            await stream.send(reply.finish(event.index, part.reason))
    await stream.send(*reply.end(tally.total()))
    return stream.response


async def _collect(events: AsyncIterator[Event], asked: Asked, tally: Tally) -> web.Response:
    """Puts events together to one answer."""
    choices = [CollectedChoice() for _ in range(asked.choices)]
    first: Started | None = None
    async for event in events:
        tally.take(event)
        part = event.body
        if isinstance(part, Delta):
            choices[event.index].add(part)
        elif isinstance(part, Started):
            first = first or part
        else:
            choices[event.index].reason = part.reason
    total = tally.total()
    if first is None:
        raise ValueError("the choices finished without a start")
    return json_answer(asked.reply.whole(first, choices, total))
