"""The generations of one channel over one stream, so that a step of the engine costs one message, not one for each."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator

import grpc

from mantler.errors import ErrorCode, MantlerError
from mantler.grpc_errors import carried, from_status, from_trailers
from mantler.v1 import generation_pb2, relay_pb2, relay_pb2_grpc

WINDOW = 64
"""Events of one generation that wait for their reader here, or are on their way."""
LARGE_BYTES = 64 * 1024
"""A longer request should travel by a call of its own: the others on this stream would wait behind it."""

_log = logging.getLogger("mantler.client")


class Relay:
    """Generations on one channel. The stream begins with the first one, and again after it broke."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: relay_pb2_grpc.RelayServiceAsyncStub = relay_pb2_grpc.RelayServiceStub(channel)
        self._stream: _Stream | None = None

    def generate(self, request: generation_pb2.GenerateRequest, timeout_s: float) -> RelayedCall:
        """Begins a generation. What comes back behaves as a call of ``GenerationService.Generate`` does."""
        if self._stream is None or self._stream.over:
            self._stream = _Stream(self._stub)
        return self._stream.begin(request, timeout_s)

    async def close(self) -> None:
        """Ends the stream and what runs on it."""
        if self._stream is not None:
            await self._stream.close()


class RelayedCall:
    """One generation: iterate over its responses, once.

    The iterator raises ``MantlerError`` where the generation fails, ``grpc.aio.AioRpcError`` where the stream does, and
    ``asyncio.CancelledError`` after :meth:`cancel`.
    """

    def __init__(self, number: int, stream: _Stream, timeout_s: float) -> None:
        self._number = number
        self._stream = stream
        self._waiting: deque[generation_pb2.GenerateResponse] = deque()
        self._taken = 0
        self._reader: asyncio.Future[None] | None = None
        self._end: BaseException | None = None
        self._deadline = asyncio.get_running_loop().call_later(max(timeout_s, 0.0), self._expire)

    def __aiter__(self) -> RelayedCall:
        return self

    async def __anext__(self) -> generation_pb2.GenerateResponse:
        while not self._waiting:
            if self._end is not None:
                raise self._end
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        self._taken += 1
        if self._taken == WINDOW // 2:
            self._stream.taken(self._number, self._taken)
            self._taken = 0
        return self._waiting.popleft()

    def cancel(self) -> None:
        """Ends the generation, unless it has ended."""
        if self._end is None:
            self._stream.cancel(self._number)
            self._waiting.clear()
            self.end(asyncio.CancelledError())

    def take(self, response: generation_pb2.GenerateResponse) -> None:
        """A response has come."""
        self._waiting.append(response)
        self._wake()

    def end(self, how: BaseException) -> None:
        """Nothing more comes; the iterator ends with ``how``, after what waits."""
        if self._end is None:
            self._end = how
            self._deadline.cancel()
            self._wake()

    def _expire(self) -> None:
        self._stream.cancel(self._number)
        self.end(MantlerError(ErrorCode.DEADLINE_EXCEEDED, "The request passed its deadline."))

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class _Stream:
    """One call of ``RelayService.Relay``."""

    def __init__(self, stub: relay_pb2_grpc.RelayServiceAsyncStub) -> None:
        self.over = False
        """Whether it takes no generations any more."""
        self._calls: dict[int, RelayedCall] = {}
        self._numbers = itertools.count()
        self._outbox: deque[relay_pb2.RelayRequest] = deque()
        self._wake = asyncio.Event()
        self._rpc = stub.Relay(self._requests())
        self._reading = asyncio.create_task(self._read())

    def begin(self, request: generation_pb2.GenerateRequest, timeout_s: float) -> RelayedCall:
        number = next(self._numbers)
        message = relay_pb2.RelayRequest(id=number)
        message.begin.request.CopyFrom(request)
        message.begin.timeout.FromNanoseconds(max(int(timeout_s * 1e9), 1))
        message.begin.window = WINDOW
        call = self._calls[number] = RelayedCall(number, self, timeout_s)
        self._send(message)
        return call

    def taken(self, number: int, events: int) -> None:
        if number in self._calls:
            self._send(relay_pb2.RelayRequest(id=number, taken=relay_pb2.RelayTaken(events=events)))

    def cancel(self, number: int) -> None:
        if self._calls.pop(number, None) is not None:
            self._send(relay_pb2.RelayRequest(id=number, cancel=relay_pb2.RelayCancel()))

    async def close(self) -> None:
        self._rpc.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    def _send(self, request: relay_pb2.RelayRequest) -> None:
        self._outbox.append(request)
        self._wake.set()

    async def _requests(self) -> AsyncIterator[relay_pb2.RelayRequest]:
        while True:
            while self._outbox:
                yield self._outbox.popleft()
            self._wake.clear()
            await self._wake.wait()

    async def _read(self) -> None:
        # Where the runtime ends it in good order, it drains.
        how: BaseException = MantlerError(
            ErrorCode.RUNTIME_UNAVAILABLE, "The runtime ended the request.", retry_after_s=1.0
        )
        try:
            async for response in self._rpc:
                for event in response.events:
                    self._take(event)
        except grpc.aio.AioRpcError as error:
            # gRPC calls it so as well where a stream breaks that is being written to.
            broken = error.code() is grpc.StatusCode.INTERNAL and carried(error) is None
            how = from_trailers(grpc.StatusCode.UNAVAILABLE, ()) if broken else error
        except asyncio.CancelledError as error:
            how = error
        finally:
            self.over = True
            self._rpc.cancel()
            calls, self._calls = self._calls, {}
            for call in calls.values():
                call.end(how)

    def _take(self, event: relay_pb2.RelayEvent) -> None:
        call = self._calls.get(event.id)
        if call is None:
            return  # it was cancelled, and this was on its way
        if event.HasField("response"):
            call.take(event.response)
        else:
            del self._calls[event.id]
            call.end(from_status(event.ended.status) if event.ended.status else StopAsyncIteration())
