"""A typed client of a runtime server, and of a facade's edge, which serves the same for a key.

It speaks the plain values of :mod:`mantler.messages`; every failure is a ``MantlerError``::

    async with RuntimeClient("127.0.0.1:50051") as client:
        async with aclosing(client.generate(request, timeout_s=60)) as events:
            async for event in events: ...
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import grpc

from mantler import messages as m
from mantler import wire
from mantler.errors import ErrorCode, MantlerError, internal
from mantler.grpc_errors import from_rpc_error
from mantler.mesh.machine import LoadReport, MachineId
from mantler.relay import LARGE_BYTES, Relay, RelayedCall
from mantler.security.transport import Security
from mantler.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    machine_pb2,
    machine_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)

MAX_MESSAGE_BYTES = 40 * 2**20
"""Fits the prompt of a 32 MiB HTTP body with the overhead of its messages."""
KEEPALIVE_MS = 10_000
"""A machine that vanished without a word is noticed after this and :data:`KEEPALIVE_TIMEOUT_MS`."""
KEEPALIVE_TIMEOUT_MS = 5_000

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also gRPC's limit on one connection attempt: an address that swallows packets fails in a second, too.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    # gRPC also pings to measure the line, and a ping that is out already stands in for keepalive's own.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    # Machines are addressed directly, never through a web proxy of the environment.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # gRPC servers drop clients that ping more often than every five minutes unless they are told otherwise.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
)
"""What a server needs for the channels above."""

UNARY_TIMEOUT_S = 10.0

Call = grpc.aio.UnaryStreamCall[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse] | RelayedCall

_T = TypeVar("_T")
_log = logging.getLogger("mantler.client")


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The length of a prompt."""

    tokens: int
    context_length: int
    """Tokens that the model takes, prompt and output together."""
    token_ids: tuple[int, ...] = ()
    """Only where they were asked for."""


class RuntimeClient:
    """One channel to the runtime or the edge at ``address`` (``HOST:PORT``). Connects on the first call, and again.

    A call fails at once while nothing answers there. An edge does not load models.

    Args:
        security: without it only this machine can be reached.
        api_key: what an edge asks for. Runtimes ask for none.
        relays: whether generations share one stream, which costs both sides less. Only runtimes know how.

    Raises: ``SecurityError`` where ``security`` does not allow the address, and ``ValueError`` for a key that no
    header can hold.
    """

    def __init__(
        self, address: str, security: Security | None = None, *, api_key: str | None = None, relays: bool = False
    ) -> None:
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("api_key must be printable ASCII")
        self.address = address
        self._metadata = () if api_key is None else (("authorization", f"Bearer {api_key}"),)
        self._channel = (security or Security()).channel(address, CHANNEL_OPTIONS)
        self._generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._models = model_pb2_grpc.ModelServiceStub(self._channel)
        self._machine = machine_pb2_grpc.MachineServiceStub(self._channel)
        self._relay = Relay(self._channel) if relays else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends open calls and the connection."""
        if self._relay is not None:
            await self._relay.close()
        await self._channel.close(None)

    async def generate(
        self, request: m.GenerateRequest, timeout_s: float, watch: CallWatch | None = None
    ) -> AsyncGenerator[m.Event, None]:
        """The events of one request, in order and without gaps, each choice finished.

        Closing the iterator cancels the call, which frees the slot on the runtime; so does passing ``timeout_s``.
        Iterate inside ``contextlib.aclosing``, or it is closed only when it is collected.

        Args:
            watch: sees the call from outside, and can end it with MACHINE_OFFLINE.
        """
        call = self._call(wire.request_to_proto(request), timeout_s)
        watch = watch or CallWatch()
        watch.begin(call)
        order = _Order()
        try:
            async for message in call:
                watch.heard_s = time.monotonic()
                event = _event(message)
                order.check(event)
                yield event
            order.check_end()
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        except MantlerError as error:
            raise _not_cancelled(error) from error.__cause__
        except asyncio.CancelledError as error:
            if not watch.given_up or _cancelled():
                raise
            raise MantlerError(
                ErrorCode.MACHINE_OFFLINE, "The machine has fallen silent.", retry_after_s=1.0
            ) from error
        finally:
            call.cancel()

    def _call(self, message: generation_pb2.GenerateRequest, timeout_s: float) -> Call:
        if self._relay is not None and message.ByteSize() <= LARGE_BYTES:
            return self._relay.generate(message, timeout_s)
        return self._generation.Generate(message, timeout=timeout_s, metadata=self._metadata)

    async def count_tokens(
        self,
        model: str,
        prompt: m.ChatPrompt | m.TextPrompt,
        *,
        include_token_ids: bool = False,
        timeout_s: float = UNARY_TIMEOUT_S,
    ) -> TokenCount:
        """The length of ``prompt``, the chat template included."""
        message = wire.count_request_to_proto(model, prompt, include_token_ids=include_token_ids)
        answer = await _answer(self._generation.CountTokens(message, timeout=timeout_s, metadata=self._metadata))
        return TokenCount(answer.tokens, answer.context_length, tuple(answer.token_ids))

    async def detokenize(self, model: str, tokens: m.TokenPrompt, *, timeout_s: float = UNARY_TIMEOUT_S) -> str:
        """The text of ``tokens``, control tokens included."""
        message = generation_pb2.DetokenizeRequest(model=model, token_ids=tokens.token_ids)
        return (await _answer(self._generation.Detokenize(message, timeout=timeout_s, metadata=self._metadata))).text

    async def list_models(self, timeout_s: float = UNARY_TIMEOUT_S) -> list[m.ModelInfo]:
        """Every model in the machine's store, loaded or not, ordered by id."""
        answer = await _answer(
            self._models.ListModels(model_pb2.ListModelsRequest(), timeout=timeout_s, metadata=self._metadata)
        )
        return [wire.model_from_proto(model) for model in answer.models]

    async def get_model(self, model: str, timeout_s: float = UNARY_TIMEOUT_S) -> m.ModelInfo:
        """One model. Raises MODEL_NOT_FOUND."""
        answer = await _answer(
            self._models.GetModel(model_pb2.GetModelRequest(model=model), timeout=timeout_s, metadata=self._metadata)
        )
        return wire.model_from_proto(answer.model)

    async def load_model(
        self, model: str, *, pull: bool = False, timeout_s: float | None = None
    ) -> AsyncGenerator[m.LoadProgress, None]:
        """Brings a model into memory; the last report has the stage READY. ``pull`` fetches a missing one.

        Closing the iterator cancels the call.
        """
        call = self._models.LoadModel(
            model_pb2.LoadModelRequest(model=model, pull=pull), timeout=timeout_s, metadata=self._metadata
        )
        try:
            async for message in call:
                yield wire.progress_from_proto(message)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        finally:
            call.cancel()

    async def unload_model(self, model: str, timeout_s: float | None = None) -> None:
        """Frees a model's memory after its running requests have finished."""
        await _answer(
            self._models.UnloadModel(
                model_pb2.UnloadModelRequest(model=model), timeout=timeout_s, metadata=self._metadata
            )
        )

    async def get_machine(self, timeout_s: float = UNARY_TIMEOUT_S) -> tuple[m.MachineInfo, LoadReport]:
        """Who the machine is, what it has, and how busy it is."""
        answer = await _answer(self._machine.GetMachine(machine_pb2.GetMachineRequest(), timeout=timeout_s))
        machine = wire.machine_from_proto(answer.machine)
        return machine, wire.load_from_proto(MachineId(machine.id), answer.load)

    async def set_draining(self, draining: bool, timeout_s: float = UNARY_TIMEOUT_S) -> None:
        """Keeps new requests away from the machine, or lets them come again."""
        await _answer(self._machine.SetDraining(machine_pb2.SetDrainingRequest(draining=draining), timeout=timeout_s))


class CallWatch:
    """One call of :meth:`RuntimeClient.generate`, for others than the task that iterates over it."""

    __slots__ = ("_call", "given_up", "heard_s")

    def __init__(self) -> None:
        self.heard_s = -math.inf
        """When it last brought an event, on the clock of ``time.monotonic``; ``-inf`` before the first one."""
        self.given_up = False
        self._call: Call | None = None

    def begin(self, call: Call) -> None:
        """The call is on its way."""
        self._call = call
        if self.given_up:
            call.cancel()

    def give_up(self) -> None:
        """Ends it. Whoever waits for its next event gets MACHINE_OFFLINE."""
        self.given_up = True
        if self._call is not None:
            self._call.cancel()


def _cancelled() -> bool:
    """Whether somebody wants the current task itself to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Order:
    """Checks that a stream is whole: consecutive ``seq``, and each choice that starts finishes."""

    def __init__(self) -> None:
        self._next_seq = 0
        self._open: set[int] = set()

    def check(self, event: m.Event) -> None:
        if event.seq != self._next_seq:
            _log.error("a generation stream went from event %d to %d", self._next_seq - 1, event.seq)
            raise internal()
        self._next_seq += 1
        if isinstance(event.body, m.Started):
            self._open.add(event.index)
        elif event.index not in self._open:
            _log.error("a generation stream speaks of choice %d, which is not open", event.index)
            raise internal()
        elif isinstance(event.body, m.Finished):
            self._open.remove(event.index)

    def check_end(self) -> None:
        if self._open or self._next_seq == 0:
            _log.error("a generation stream ended after %d events with choices unfinished", self._next_seq)
            raise internal()


def _event(message: generation_pb2.GenerateResponse) -> m.Event:
    try:
        return wire.event_from_proto(message)
    except (ValueError, KeyError) as error:
        _log.error("a generation stream holds an event of a kind that this version does not know: %r", error)
        raise internal() from error


async def _answer(call: Awaitable[_T]) -> _T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise _translated(error) from error


def _translated(error: grpc.aio.AioRpcError) -> MantlerError:
    known = from_rpc_error(error)
    if known.code is ErrorCode.INTERNAL_ERROR:
        _log.error("the runtime failed: %s %s", error.code().name, error.details())
    return _not_cancelled(known)


def _not_cancelled(error: MantlerError) -> MantlerError:
    if error.code is ErrorCode.CANCELLED:
        # Our own cancelling never ends up here: the runtime gave the request up, as when it is stopped.
        return MantlerError(ErrorCode.RUNTIME_UNAVAILABLE, "The runtime ended the request.", retry_after_s=1.0)
    return error
