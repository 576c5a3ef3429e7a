"""RelayService: many generations over one stream, against a scripted runtime, with and without the client for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mantler import messages as m
from mantler import relay as relay_module
from mantler import wire
from mantler.client import RuntimeClient
from mantler.errors import ErrorCode, MantlerError
from mantler.grpc_errors import from_rpc_error, from_status
from mantler.v1 import generation_pb2, relay_pb2, relay_pb2_grpc
from runtime_server.services import relay as relay_service
from runtime_server.services.relay import RelayServicer
from tests.fake_runtime import Body, FakeRuntime, Gate, failing

MODEL = "smollm2:135m"
SECONDS = 5

Stream = grpc.aio.StreamStreamCall[relay_pb2.RelayRequest, relay_pb2.RelayResponse]


def request(text: str = "one two three", request_id: str = "r") -> m.GenerateRequest:
    return m.GenerateRequest(request_id, MODEL, m.TextPrompt(text))


def begin(
    number: int, text: str = "one two three", *, window: int = 64, timeout_s: float = 60
) -> relay_pb2.RelayRequest:
    message = relay_pb2.RelayRequest(id=number)
    message.begin.request.CopyFrom(wire.request_to_proto(request(text)))
    message.begin.timeout.FromNanoseconds(int(timeout_s * 1e9))
    message.begin.window = window
    return message


def taken(number: int, events: int) -> relay_pb2.RelayRequest:
    return relay_pb2.RelayRequest(id=number, taken=relay_pb2.RelayTaken(events=events))


def cancel(number: int) -> relay_pb2.RelayRequest:
    return relay_pb2.RelayRequest(id=number, cancel=relay_pb2.RelayCancel())


class Caller:
    """The stream as somebody sees it who speaks the protocol by hand."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        # Not every version of gRPC's types knows a call without an iterator, which is written to.
        begin: Callable[[], Stream] = cast(Any, relay_pb2_grpc.RelayServiceStub(channel)).Relay
        self.call = begin()
        self.events: list[relay_pb2.RelayEvent] = []
        self.ends: dict[int, MantlerError | None] = {}
        self.batches: list[int] = []

    async def say(self, *requests: relay_pb2.RelayRequest) -> None:
        for message in requests:
            await self.call.write(message)

    async def read(self) -> bool:
        """One message. False where the call has ended well."""
        response = await asyncio.wait_for(self.call.read(), SECONDS)
        if not isinstance(response, relay_pb2.RelayResponse):
            return False
        self.batches.append(len(response.events))
        for event in response.events:
            self.events.append(event)
            if event.HasField("ended"):
                self.ends[event.id] = from_status(event.ended.status) if event.ended.status else None
        return True

    async def until_ended(self, *numbers: int) -> None:
        while not set(numbers) <= set(self.ends):
            assert await self.read()

    async def until_over(self) -> None:
        while await self.read():
            pass

    def text(self, number: int) -> str:
        return "".join(event.response.delta.text for event in self.events if event.id == number)

    def responses(self, number: int) -> list[generation_pb2.GenerateResponse]:
        return [event.response for event in self.events if event.id == number and event.HasField("response")]


@asynccontextmanager
async def calling(runtime: FakeRuntime) -> AsyncIterator[Caller]:
    async with grpc.aio.insecure_channel(runtime.address) as channel:
        yield Caller(channel)


@pytest.fixture
async def runtime() -> AsyncIterator[FakeRuntime]:
    async with FakeRuntime() as fake:
        yield fake


@pytest.fixture
async def caller(runtime: FakeRuntime) -> AsyncIterator[Caller]:
    async with calling(runtime) as made:
        yield made


async def test_generations_share_the_stream_and_each_ends(caller: Caller) -> None:
    await caller.say(begin(1, "a b"), begin(7, "c"), begin(3, "d e f"))
    await caller.until_ended(1, 7, 3)
    assert [caller.text(number) for number in (1, 7, 3)] == ["a b", "c", "d e f"]
    assert caller.ends == {1: None, 7: None, 3: None}
    for number in (1, 7, 3):
        assert [response.seq for response in caller.responses(number)] == list(range(len(caller.responses(number))))


async def test_what_comes_at_once_leaves_in_one_message(runtime: FakeRuntime, caller: Caller) -> None:
    gates = [Gate(stop_after=1) for _ in range(20)]
    waiting = iter(gates)
    runtime.script = lambda request: next(waiting)(request)
    await caller.say(*(begin(number, "x") for number in range(20)))
    while len(caller.events) < 20:
        await caller.read()
    caller.batches.clear()
    for gate in gates:
        gate.opened.set()
    await caller.until_ended(*range(20))
    assert len(caller.batches) <= 3, "20 deltas and 20 ends"


async def test_a_number_may_be_used_again_once_it_has_ended(caller: Caller) -> None:
    await caller.say(begin(1, "a"))
    await caller.until_ended(1)
    caller.ends.clear()
    await caller.say(begin(1, "b"))
    await caller.until_ended(1)
    assert caller.text(1) == "ab"


async def test_a_caller_that_takes_nothing_gets_its_window_and_no_more(runtime: FakeRuntime, caller: Caller) -> None:
    said = 0

    async def endless(_: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        nonlocal said
        yield m.Started(MODEL, 1)
        while True:
            said += 1
            yield m.Delta("x", (1,))

    runtime.script = endless
    await caller.say(begin(1, window=5))
    while len(caller.events) < 5:
        await caller.read()
    runtime.script = lambda request: Gate(stop_after=99)(request)
    await caller.say(begin(2, "others go on"))
    await caller.until_ended(2)
    assert len(caller.responses(1)) == 5
    assert said == 5, "one that waits for its place"
    await caller.say(taken(1, 3))
    while len(caller.responses(1)) < 8:
        await caller.read()
    # Nobody gets a larger window than it asked for.
    await caller.say(taken(1, 1_000_000))
    while len(caller.responses(1)) < 13:
        await caller.read()
    caller.ends.clear()
    await caller.say(begin(3, "others go on"))
    await caller.until_ended(3)
    assert len(caller.responses(1)) == 13


async def test_a_cancelled_generation_is_freed_and_says_nothing_more(runtime: FakeRuntime, caller: Caller) -> None:
    gate = runtime.script = Gate(stop_after=1)
    await caller.say(begin(1))
    await asyncio.wait_for(gate.reached.wait(), SECONDS)
    await caller.say(cancel(1))
    await asyncio.wait_for(runtime.idle(), SECONDS)
    assert runtime.cancelled == 1
    # Its number is free, and what is said of one that has ended is no error.
    runtime.script = Gate(stop_after=99)
    await caller.say(cancel(1), taken(1, 5), cancel(99), begin(1, "again"))
    await caller.until_ended(1)
    assert caller.text(1) == "again"


async def test_the_end_of_the_call_frees_every_generation(runtime: FakeRuntime) -> None:
    runtime.script = lambda request: Gate(stop_after=1)(request)
    async with calling(runtime) as caller:
        await caller.say(*(begin(number) for number in range(10)))
        await asyncio.wait_for(runtime.busy(10), SECONDS)
    await asyncio.wait_for(runtime.idle(), SECONDS)
    assert runtime.cancelled == 10


async def test_a_caller_that_closes_its_side_gets_what_it_asked_for(caller: Caller) -> None:
    await caller.say(begin(1, "a b"), begin(2, "c d"))
    await caller.call.done_writing()
    await caller.until_over()
    assert (caller.text(1), caller.text(2)) == ("a b", "c d")
    assert caller.ends == {1: None, 2: None}


async def test_a_failure_belongs_to_its_generation(runtime: FakeRuntime, caller: Caller) -> None:
    runtime.script = failing(MantlerError(ErrorCode.QUEUE_FULL, "Full.", retry_after_s=2.5))
    await caller.say(begin(1))
    await caller.until_ended(1)
    runtime.script = Gate(stop_after=99)
    await caller.say(begin(2, "fine"))
    await caller.until_ended(2)
    error = caller.ends[1]
    assert error is not None
    assert (error.code, error.message, error.retry_after_s) == (ErrorCode.QUEUE_FULL, "Full.", 2.5)
    assert caller.ends[2] is None


async def test_a_bug_is_not_quoted(runtime: FakeRuntime, caller: Caller) -> None:
    async def broken(_: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        yield m.Started(MODEL, 1)
        raise RuntimeError("a secret")

    runtime.script = broken
    await caller.say(begin(1))
    await caller.until_ended(1)
    error = caller.ends[1]
    assert error is not None
    assert error.code is ErrorCode.INTERNAL_ERROR
    assert "secret" not in error.message


async def test_a_deadline_ends_one_generation(runtime: FakeRuntime, caller: Caller) -> None:
    runtime.script = lambda request: Gate(stop_after=1)(request)
    await caller.say(begin(1, timeout_s=60), begin(2, timeout_s=0.05))
    await caller.until_ended(2)
    error = caller.ends[2]
    assert error is not None
    assert error.code is ErrorCode.DEADLINE_EXCEEDED
    assert runtime.active == 1


async def test_more_than_it_holds(runtime: FakeRuntime, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_service, "MAX_GENERATIONS", 2)
    runtime.script = lambda request: Gate(stop_after=1)(request)
    await caller.say(begin(1), begin(2), begin(3))
    await caller.until_ended(3)
    error = caller.ends[3]
    assert error is not None
    assert error.code is ErrorCode.QUEUE_FULL
    assert runtime.active == 2


async def test_messages_stay_small(runtime: FakeRuntime, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_service, "MAX_BATCH_BYTES", 1000)
    sizes: list[int] = []

    async def long(_: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        yield m.Started(MODEL, 1)
        for count in range(30):
            yield m.Delta("x" * 400, (count,))
        yield m.Finished(m.FinishReason.STOP, m.Usage(1, 30))

    runtime.script = long
    await caller.say(begin(1))
    while 1 not in caller.ends:
        before = len(caller.events)
        await caller.read()
        sizes.append(sum(event.ByteSize() for event in caller.events[before:]))
    assert max(sizes) < 1000 + 450


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([begin(1), begin(1)], "id"),
        ([begin(1, window=0)], "window"),
        ([begin(1, window=1025)], "window"),
        ([begin(1, timeout_s=0)], "timeout"),
        ([begin(1, timeout_s=-1)], "timeout"),
        ([relay_pb2.RelayRequest(id=1)], "action"),
    ],
)
async def test_a_caller_that_breaks_the_rules(
    runtime: FakeRuntime, caller: Caller, requests: Sequence[relay_pb2.RelayRequest], field: str
) -> None:
    runtime.script = lambda request: Gate(stop_after=1)(request)
    await caller.say(*requests)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await caller.until_over()
    error = from_rpc_error(raised.value)
    assert (error.code, error.param) == (ErrorCode.INVALID_PARAMETER, field)
    await asyncio.wait_for(runtime.idle(), SECONDS)


async def test_draining_waits_for_what_runs() -> None:
    opened = asyncio.Event()

    async def answer(_: generation_pb2.GenerateRequest) -> AsyncGenerator[generation_pb2.GenerateResponse, None]:
        yield generation_pb2.GenerateResponse(seq=0)
        await opened.wait()
        yield generation_pb2.GenerateResponse(seq=1)

    servicer = RelayServicer(answer)
    server = grpc.aio.server()
    relay_pb2_grpc.add_RelayServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        busy, idle = Caller(channel), Caller(channel)
        await busy.say(begin(1))
        await busy.read()
        await idle.say(cancel(1))
        await idle.say(begin(1))
        await idle.read()
        await idle.say(cancel(1))
        stopping = asyncio.create_task(server.stop(60))
        servicer.drain()
        assert not await idle.read()
        assert not stopping.done()
        opened.set()
        await busy.until_over()
        assert [response.seq for response in busy.responses(1)] == [0, 1]
        await asyncio.wait_for(stopping, SECONDS)


@asynccontextmanager
async def relaying(runtime: FakeRuntime) -> AsyncIterator[RuntimeClient]:
    async with RuntimeClient(runtime.address, relays=True) as client:
        yield client


async def collect(client: RuntimeClient, wanted: m.GenerateRequest) -> str:
    async with aclosing(client.generate(wanted, SECONDS)) as events:
        return "".join([event.body.text async for event in events if isinstance(event.body, m.Delta)])


async def test_the_client_reads_slowly_and_loses_nothing(runtime: FakeRuntime) -> None:
    text = " ".join(str(i) for i in range(10 * relay_module.WINDOW))
    async with relaying(runtime) as client, aclosing(client.generate(request(text), 60)) as slow:
        await anext(slow)
        assert await collect(client, request(text)) == text
        rest = "".join([event.body.text async for event in slow if isinstance(event.body, m.Delta)])
    assert rest == text


async def test_a_long_request_travels_alone(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    async with relaying(runtime) as client:
        monkeypatch.setattr(client, "_relay", None)
        assert await collect(client, request("x" * relay_module.LARGE_BYTES)) != ""
    calls: list[str] = []
    begin_one = relay_module.Relay.generate

    def counted(
        self: relay_module.Relay, message: generation_pb2.GenerateRequest, timeout_s: float
    ) -> relay_module.RelayedCall:
        calls.append(message.request_id)
        return begin_one(self, message, timeout_s)

    monkeypatch.setattr(relay_module.Relay, "generate", counted)
    async with relaying(runtime) as client:
        await collect(client, request("x" * relay_module.LARGE_BYTES, "long"))
        await collect(client, request("x", "short"))
    assert calls == ["short"]


async def test_many_at_once_each_with_its_own_fate(runtime: FakeRuntime) -> None:
    async def script(wanted: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        yield m.Started(MODEL, 1)
        yield m.Delta(wanted.request_id, (1,))
        if wanted.request_id.endswith("3"):
            raise MantlerError(ErrorCode.RUNTIME_UNAVAILABLE, "No.")
        if wanted.request_id.endswith("7"):
            await asyncio.Event().wait()
        yield m.Finished(m.FinishReason.STOP, m.Usage(1, 1))

    runtime.script = script

    async def one(number: int) -> str:
        try:
            async with asyncio.timeout(0.5 if number % 10 == 7 else SECONDS):
                return await collect(client, request(request_id=f"r{number}"))
        except MantlerError as error:
            return error.code.value
        except TimeoutError:
            return "left"

    async with relaying(runtime) as client:
        found = await asyncio.gather(*(one(number) for number in range(200)))
        await asyncio.wait_for(runtime.idle(), SECONDS)
    for number, what in enumerate(found):
        expected = {3: "runtime_unavailable", 7: "left"}.get(number % 10, f"r{number}")
        assert what == expected


@given(st.lists(st.integers(1, 5), max_size=30), st.integers(1, 8))
def test_room_is_never_more_than_the_window(grants: list[int], window: int) -> None:
    async def run() -> None:
        generation = relay_service._Generation(window)
        room = window
        for events in grants:
            while room:
                await asyncio.wait_for(generation.place(), SECONDS)
                room -= 1
            waiting = asyncio.ensure_future(generation.place())
            await asyncio.sleep(0)
            assert not waiting.done()
            generation.grant(events)
            await asyncio.wait_for(waiting, SECONDS)
            room = min(events, window) - 1

    asyncio.run(run())
