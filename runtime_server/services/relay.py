"""RelayService over gRPC: many generations over one stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc

from mantler.errors import ErrorCode, MantlerError, invalid
from mantler.grpc_errors import border, public, to_status
from mantler.v1 import generation_pb2, relay_pb2, relay_pb2_grpc

Answer = Callable[[generation_pb2.GenerateRequest], AsyncGenerator[generation_pb2.GenerateResponse, None]]
"""Runs one generation; raises ``MantlerError``."""
Context = grpc.aio.ServicerContext[Any, Any]

MAX_WINDOW = 1024
MAX_GENERATIONS = 4096
"""Of one relay."""
MAX_BATCH_BYTES = 2**20
"""A message is sent before it has more than this and one event."""


class RelayServicer(relay_pb2_grpc.RelayServiceServicer):
    """Answers every generation with ``answer``."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._relays: set[_Relay] = set()
        self._draining = False

    async def Relay(  # type: ignore[override]  # noqa: N802
        self, requests: AsyncIterator[relay_pb2.RelayRequest], context: Context
    ) -> None:
        """See the proto."""
        relay = _Relay(self._answer)
        self._relays.add(relay)
        if self._draining:
            relay.drain()
        try:
            async with border(context, "Relay"):
                await relay.run(requests, context)
        finally:
            self._relays.discard(relay)

    def drain(self) -> None:
        """Relays end once their generations have."""
        self._draining = True
        for relay in self._relays:
            relay.drain()


class _Relay:
    """The generations of one caller."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._running: dict[int, _Generation] = {}
        self._outbox: deque[relay_pb2.RelayEvent] = deque()
        """At most a window of each generation, and the ends of those that were still running."""
        self._wake = asyncio.Event()
        self._closing = False

    def drain(self) -> None:
        self._closing = True
        self._wake.set()

    async def run(self, requests: AsyncIterator[relay_pb2.RelayRequest], context: Context) -> None:
        """Until the caller has closed its side, or it drains, and the last generation has ended."""
        reading = asyncio.create_task(self._read(requests))
        reading.add_done_callback(lambda _: self.drain())
        try:
            while self._running or self._outbox or not self._closing:
                await self._wake.wait()
                self._wake.clear()
                # Tokens that come while a message is written leave together with the next one.
                while self._outbox:
                    await context.write(self._batch())
                if reading.done():
                    reading.result()
        finally:
            tasks = [reading, *(generation.task for generation in self._running.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[relay_pb2.RelayRequest]) -> None:
        async for request in requests:
            match request.WhichOneof("action"):
                case "begin":
                    self._begin(request.id, request.begin)
                case "taken":
                    if (taken_from := self._running.get(request.id)) is not None:
                        taken_from.grant(request.taken.events)
                case "cancel":
                    if (cancelled := self._running.pop(request.id, None)) is not None:
                        cancelled.task.cancel()
                        self._wake.set()
                case _:
                    raise invalid("action", "must be begin, cancel or taken")

    def _begin(self, number: int, begin: relay_pb2.RelayBegin) -> None:
        if number in self._running:
            raise invalid("id", f"{number} belongs to a generation that runs")
        if not 1 <= begin.window <= MAX_WINDOW:
            raise invalid("window", f"must be from 1 to {MAX_WINDOW}")
        if begin.timeout.ToNanoseconds() <= 0:
            raise invalid("timeout", "must be more than 0")
        if len(self._running) >= MAX_GENERATIONS:
            error = MantlerError(ErrorCode.QUEUE_FULL, "The runtime is out of capacity.", retry_after_s=1.0)
            self._put(relay_pb2.RelayEvent(id=number, ended=_ended(error)))
            return
        generation = self._running[number] = _Generation(begin.window)
        generation.task = asyncio.create_task(self._generate(number, begin, generation))

    async def _generate(self, number: int, begin: relay_pb2.RelayBegin, generation: _Generation) -> None:
        error: Exception | None = None
        try:
            async with asyncio.timeout(begin.timeout.ToNanoseconds() / 1e9) as limit:
                async with aclosing(self._answer(begin.request)) as responses:
                    async for response in responses:
                        await generation.place()
                        self._put(relay_pb2.RelayEvent(id=number, response=response))
        except Exception as failure:
            error = failure
            if limit.expired():
                error = MantlerError(ErrorCode.DEADLINE_EXCEEDED, "The request passed its deadline.")
        # A generation that was cancelled has left, and its number may be another one's.
        if self._running.get(number) is generation:
            del self._running[number]
            known = None if error is None else public(error, f"Relay of {begin.request.request_id!r}")
            self._put(relay_pb2.RelayEvent(id=number, ended=_ended(known)))

    def _put(self, event: relay_pb2.RelayEvent) -> None:
        self._outbox.append(event)
        self._wake.set()

    def _batch(self) -> relay_pb2.RelayResponse:
        events, size = [], 0
        while self._outbox and size < MAX_BATCH_BYTES:
            events.append(self._outbox.popleft())
            size += events[-1].ByteSize()
        return relay_pb2.RelayResponse(events=events)


class _Generation:
    """One generation, and how many of its events the caller has room for."""

    task: asyncio.Task[None]

    def __init__(self, window: int) -> None:
        self._window = window
        self._room = window
        self._granted = asyncio.Event()

    def grant(self, events: int) -> None:
        """The caller took so many."""
        self._room = min(self._room + events, self._window)
        self._granted.set()

    async def place(self) -> None:
        """Takes the room of one event, once there is some."""
        while self._room == 0:
            self._granted.clear()
            await self._granted.wait()
        self._room -= 1


def _ended(error: MantlerError | None) -> relay_pb2.RelayEnded:
    return relay_pb2.RelayEnded(status=b"" if error is None else to_status(error).SerializeToString())
