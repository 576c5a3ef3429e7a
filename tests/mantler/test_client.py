"""The runtime's client against a fake runtime."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import grpc
import pytest

from mantler import client as client_module
from mantler import messages as m
from mantler import wire
from mantler.client import RuntimeClient
from mantler.config import join_address, split_address
from mantler.errors import ErrorCode, MantlerError
from mantler.grpc_errors import MAX_MESSAGE_CHARS
from mantler.v1 import generation_pb2, generation_pb2_grpc
from tests.fake_runtime import Body, FakeRuntime, Gate, failing

MODEL = "smollm2:135m"


def request(text: str = "one two", model: str = MODEL) -> m.GenerateRequest:
    return m.GenerateRequest("r-1", model, m.ChatPrompt((m.ChatMessage(m.Role.USER, text),)))


@pytest.fixture
async def runtime() -> AsyncIterator[FakeRuntime]:
    async with FakeRuntime() as fake:
        yield fake


@pytest.fixture(params=[False, True], ids=["calls", "relay"])
def relays(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
async def client(runtime: FakeRuntime, relays: bool) -> AsyncIterator[RuntimeClient]:
    async with RuntimeClient(runtime.address, relays=relays) as made:
        yield made


async def collect(client: RuntimeClient, wanted: m.GenerateRequest, timeout_s: float = 10) -> list[m.Event]:
    async with aclosing(client.generate(wanted, timeout_s)) as events:
        return [event async for event in events]


async def test_generate(client: RuntimeClient) -> None:
    events = await collect(client, request())
    assert [event.seq for event in events] == [0, 1, 2, 3]
    assert "".join(event.body.text for event in events if isinstance(event.body, m.Delta)) == "one two"
    assert isinstance(events[-1].body, m.Finished)


async def test_closing_the_iterator_cancels_the_call(runtime: FakeRuntime, client: RuntimeClient) -> None:
    runtime.script = Gate(stop_after=1)
    async with aclosing(client.generate(request(), 60)) as events:
        await anext(events)
    await asyncio.wait_for(runtime.idle(), 5)
    assert runtime.cancelled == 1


async def test_cancelling_the_task_cancels_the_call(runtime: FakeRuntime, client: RuntimeClient) -> None:
    gate = runtime.script = Gate(stop_after=0)
    task = asyncio.create_task(collect(client, request(), 60))
    await gate.reached.wait()
    task.cancel()
    await asyncio.wait_for(runtime.idle(), 5)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_deadline(runtime: FakeRuntime, client: RuntimeClient) -> None:
    runtime.script = Gate(stop_after=1)
    with pytest.raises(MantlerError) as raised:
        await collect(client, request(), 0.1)
    assert raised.value.code is ErrorCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(runtime.idle(), 5)


async def test_errors_keep_their_details(runtime: FakeRuntime, client: RuntimeClient) -> None:
    runtime.script = failing(MantlerError(ErrorCode.QUEUE_FULL, "Full.", param="p", retry_after_s=2.5))
    with pytest.raises(MantlerError) as raised:
        await collect(client, request())
    error = raised.value
    assert (error.code, error.message, error.param, error.retry_after_s) == (ErrorCode.QUEUE_FULL, "Full.", "p", 2.5)


@pytest.mark.parametrize("character", ["x", "é", "😀"])
async def test_a_long_message_does_not_cost_the_error(
    runtime: FakeRuntime, client: RuntimeClient, character: str
) -> None:
    runtime.script = failing(MantlerError(ErrorCode.MODEL_NOT_FOUND, character * 20_000, param="model"))
    with pytest.raises(MantlerError) as raised:
        await collect(client, request())
    error = raised.value
    assert (error.code, error.param) == (ErrorCode.MODEL_NOT_FOUND, "model")
    assert error.message == character * (MAX_MESSAGE_CHARS - 1) + "…"


async def test_the_runtime_cancelling_is_not_the_client_leaving(runtime: FakeRuntime, client: RuntimeClient) -> None:
    runtime.script = failing(MantlerError(ErrorCode.CANCELLED, "Gone."))
    with pytest.raises(MantlerError) as raised:
        await collect(client, request())
    assert raised.value.code is ErrorCode.RUNTIME_UNAVAILABLE


async def test_a_machine_that_vanishes_without_a_word_is_noticed(
    runtime: FakeRuntime, relays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter = {client_module.KEEPALIVE_MS: 1000, client_module.KEEPALIVE_TIMEOUT_MS: 300}
    options = tuple((name, shorter.get(value, value)) for name, value in client_module.CHANNEL_OPTIONS)
    monkeypatch.setattr(client_module, "CHANNEL_OPTIONS", options)
    runtime.script = Gate(stop_after=1)
    async with (
        swallowing(runtime.address) as (address, swallow),
        RuntimeClient(address, relays=relays) as client,
        aclosing(client.generate(request(), 60)) as events,
    ):
        await anext(events)
        swallow.set()
        started = time.monotonic()
        with pytest.raises(MantlerError) as raised:
            await anext(events)
    assert raised.value.code is ErrorCode.MACHINE_OFFLINE
    assert time.monotonic() - started < 5


@contextlib.asynccontextmanager
async def swallowing(address: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A relay to ``address`` that takes everything and passes on nothing once its event is set."""
    swallow = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            while data := await reader.read(65536):
                if not swallow.is_set():
                    writer.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*split_address(address))
        tasks.add(asyncio.create_task(pass_on(reader, there_writer)))
        tasks.add(asyncio.create_task(pass_on(there_reader, writer)))

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield join_address(*server.sockets[0].getsockname()), swallow
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_streams_that_are_not_whole(runtime: FakeRuntime, client: RuntimeClient) -> None:
    started, delta = m.Started(MODEL, 1), m.Delta("a", (1,))
    finished = m.Finished(m.FinishReason.STOP, m.Usage(1, 1))
    for bodies in ((), (started,), (started, delta), (delta, finished), (started, finished, delta)):

        async def script(_: m.GenerateRequest, bodies: tuple[Body, ...] = bodies) -> AsyncGenerator[Body, None]:
            for body in bodies:
                yield body

        runtime.script = script
        with pytest.raises(MantlerError) as raised:
            await collect(client, request())
        assert raised.value.code is ErrorCode.INTERNAL_ERROR


@pytest.mark.parametrize("seqs", [[0, 2], [0, 0], [1]])
async def test_gaps_and_duplicates(seqs: list[int]) -> None:
    class Skipping(generation_pb2_grpc.GenerationServiceServicer):
        async def Generate(  # noqa: N802
            self, request: generation_pb2.GenerateRequest, context: object
        ) -> AsyncIterator[generation_pb2.GenerateResponse]:
            for seq in seqs:
                yield wire.event_to_proto(m.Event(seq, 0, m.Started(MODEL, 1) if seq == seqs[0] else m.Delta("x")))

        async def CountTokens(  # noqa: N802
            self, request: generation_pb2.CountTokensRequest, context: object
        ) -> generation_pb2.CountTokensResponse:
            raise NotImplementedError

        async def Detokenize(  # noqa: N802
            self, request: generation_pb2.DetokenizeRequest, context: object
        ) -> generation_pb2.DetokenizeResponse:
            raise NotImplementedError

    server = grpc.aio.server()
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(Skipping(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with RuntimeClient(f"127.0.0.1:{port}") as client:
            with pytest.raises(MantlerError) as raised:
                await collect(client, request())
    finally:
        await server.stop(None)
    assert raised.value.code is ErrorCode.INTERNAL_ERROR


async def test_models(runtime: FakeRuntime, client: RuntimeClient) -> None:
    assert [model.id for model in await client.list_models()] == ["cold:1b", "org/other:tag", MODEL]
    assert await client.get_model(MODEL) == runtime.models[MODEL]
    with pytest.raises(MantlerError) as raised:
        await client.get_model("nope")
    assert (raised.value.code, raised.value.param) == (ErrorCode.MODEL_NOT_FOUND, "model")


async def test_load_and_unload(client: RuntimeClient) -> None:
    async with aclosing(client.load_model("cold:1b")) as reports:
        progress = [report async for report in reports]
    assert [report.stage for report in progress] == [m.LoadStage.LOADING, m.LoadStage.READY]
    assert progress[-1].model is not None
    assert (await client.get_model("cold:1b")).state is m.ModelState.READY
    await client.unload_model("cold:1b")
    assert (await client.get_model("cold:1b")).state is m.ModelState.STORED
    with pytest.raises(MantlerError):
        async with aclosing(client.load_model("nope")) as reports:
            await anext(reports)


async def test_count_tokens(client: RuntimeClient) -> None:
    counted = await client.count_tokens(MODEL, request("a b c").prompt, include_token_ids=True)  # type: ignore[arg-type]
    assert (counted.tokens, counted.context_length, counted.token_ids) == (3, 8192, (0, 1, 2))
    assert (await client.count_tokens(MODEL, m.TextPrompt("a"))).token_ids == ()


async def test_detokenize(client: RuntimeClient) -> None:
    assert await client.detokenize(MODEL, m.TokenPrompt((1, 2))) == "t1 t2"
    with pytest.raises(MantlerError):
        await client.detokenize("nope", m.TokenPrompt((1,)))


async def test_a_runtime_that_is_down_fails_at_once_and_is_used_again_soon(
    runtime: FakeRuntime, client: RuntimeClient
) -> None:
    await collect(client, request())
    await runtime.kill()
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(MantlerError) as raised:
            await collect(client, request())
        assert raised.value.code is ErrorCode.MACHINE_OFFLINE
    assert time.monotonic() - began < 1
    await runtime.start()
    events: list[m.Event] = []
    while not events:
        assert time.monotonic() - began < 10
        try:
            events = await collect(client, request())
        except MantlerError as error:
            if error.code is not ErrorCode.MACHINE_OFFLINE:
                raise
    assert len(events) == 4


async def test_prompts_beyond_grpcs_default_size(client: RuntimeClient, runtime: FakeRuntime) -> None:
    wanted = m.GenerateRequest("r", MODEL, m.TextPrompt("x" * (32 * 2**20)), stop=m.StopParams(max_tokens=1))

    async def brief(request: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        yield m.Started(MODEL, 1)
        yield m.Finished(m.FinishReason.LENGTH, m.Usage(1, 0))

    runtime.script = brief
    assert len(await collect(client, wanted)) == 2
