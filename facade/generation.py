"""What every address that generates does: a request to the runtime, and its events as an answer.

A request goes: key, a place among the open ones, body, model access, rate limit, runtime. The runtime's work is
cancelled on every way out: leaving the event iterator cancels the gRPC call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from aiohttp import web

from facade.answer import encode_json, json_answer
from facade.auth import authenticate, require_model
from facade.body import read_json_body
from facade.cache_salt import cache_salt
from facade.collected import CollectedChoice, UsageSum
from facade.errors import error_object, public_error
from facade.exchange import EXCHANGE, Exchange
from facade.limits import Reservation, reserve
from facade.merged import generate_all, prompt_text
from facade.served import not_found
from facade.services import SERVICES
from facade.spelling import respelled
from facade.sse import DONE, EventStream
from mantler.errors import ErrorCode, MantlerError
from mantler.messages import Delta, Event, FinishReason, GenerateRequest, Started, Usage
from mantler.tenancy.store import KeyRecord


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

    def begins_prompt(self, index: int) -> bool:
        """Whether choice ``index`` is the first one of its prompt, whose tokens count once."""
        return index % self.requests[0].n == 0

    def usage_sum(self) -> UsageSum:
        """Adds up what its choices cost."""
        return UsageSum(self.requests[0].n, len(self.requests))


Read = Callable[[bytes, Exchange], Asked]
"""Reads a body. Raises ``MantlerError`` for a bad one."""


async def answer_generation(request: web.Request, read: Read) -> web.StreamResponse:
    """One answer, whole or as a stream of server-sent events."""
    services = request.app[SERVICES]
    exchange = request[EXCHANGE]
    key = await authenticate(request)
    async with EventStream(request, services.settings.ping_interval_s) as stream:
        try:
            async with services.admission.admit():
                response = await _generate(request, key, stream, read)
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


async def _generate(request: web.Request, key: KeyRecord, stream: EventStream, read: Read) -> web.StreamResponse:
    services = request.app[SERVICES]
    exchange = request[EXCHANGE]
    settings = services.settings
    asked = read(await read_json_body(request, settings.max_body_mb * 2**20), exchange)
    salt = cache_salt(key, asked.requests[0].cache_salt)
    wanted = [replace(each, cache_salt=salt) for each in asked.requests]
    model = wanted[0].model
    require_model(key, model)
    with reserve(services.limiters, key, exchange, wanted) as reservation:
        try:
            echoes = [await prompt_text(services.client, each) for each in wanted] if asked.echo else ()
            async with aclosing(generate_all(services.client, wanted, echoes, settings.request_timeout_s)) as events:
                if asked.stream:
                    return await _relay(events, asked, stream, exchange, reservation)
                return await _collect(events, asked, exchange, reservation)
        except MantlerError as error:
            if error.code is ErrorCode.MODEL_NOT_FOUND:
                raise await not_found(services.client, key, model) from error
            raise respelled(error, asked.spelling) from error


async def _relay(
    events: AsyncIterator[Event], asked: Asked, stream: EventStream, exchange: Exchange, reservation: Reservation
) -> web.StreamResponse:
    """Sends events on as they come. The first one decides: until it came, a failure is an HTTP status."""
    stream.watch_silence()
    reply = asked.reply
    usage = asked.usage_sum()
    begun = False
    async for event in events:
        part = event.body
        if isinstance(part, Delta):
            exchange.count_tokens(len(part.token_ids))
            reservation.count()
            for data in reply.delta(event.index, part):
                await stream.send(data)
        elif isinstance(part, Started):
            _note_start(part, asked.begins_prompt(event.index), exchange, reservation)
            if begun:
                continue
            begun = True
            await stream.open()
            for data in reply.begin(part):
                await stream.send(data)
        else:
            usage.add(event.index, part)
            await stream.send(reply.finish(event.index, part.reason))
    total = usage.total()
    _note_usage(total, exchange)
    for data in reply.end(total):
        await stream.send(data)
    return stream.response


async def _collect(
    events: AsyncIterator[Event], asked: Asked, exchange: Exchange, reservation: Reservation
) -> web.Response:
    """Puts events together to one answer."""
    usage = asked.usage_sum()
    choices = [CollectedChoice() for _ in range(asked.choices)]
    first: Started | None = None
    async for event in events:
        part = event.body
        if isinstance(part, Delta):
            exchange.count_tokens(len(part.token_ids))
            reservation.count()
            choices[event.index].add(part)
        elif isinstance(part, Started):
            _note_start(part, asked.begins_prompt(event.index), exchange, reservation)
            first = first or part
        else:
            usage.add(event.index, part)
            choices[event.index].reason = part.reason
    total = usage.total()
    if first is None:
        raise ValueError("the choices finished without a start")
    _note_usage(total, exchange)
    return json_answer(asked.reply.whole(first, choices, total))


def _note_start(started: Started, begins_prompt: bool, exchange: Exchange, reservation: Reservation) -> None:
    reservation.settle()
    if begins_prompt:
        exchange.prompt_tokens = (exchange.prompt_tokens or 0) + started.prompt_tokens
        reservation.count()


def _note_usage(total: Usage, exchange: Exchange) -> None:
    exchange.prompt_tokens = total.prompt_tokens
    exchange.completion_tokens = total.completion_tokens
