"""A runtime server with a scripted backend, for everything above the engine.

It speaks real gRPC on a real port. What it answers is a script: an async generator of the bodies of events, which may
wait for an ``asyncio.Event`` of the test or raise a ``MantlerError``. A body belongs to choice 0, unless it comes as a
pair with the index of another one. Without a script it echoes words::

    async with FakeRuntime() as runtime:
        runtime.script = my_script          # default: echo
        client = RuntimeClient(runtime.address)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self

import grpc

from mantler import messages as m
from mantler import wire
from mantler.client import SERVER_OPTIONS
from mantler.errors import ErrorCode, MantlerError
from mantler.grpc_errors import abort
from mantler.mesh.machine import LoadReport, MachineId, ModelLoad
from mantler.security.transport import Security
from mantler.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    machine_pb2,
    machine_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    relay_pb2_grpc,
)
from runtime_server.services.relay import RelayServicer

Body = m.Started | m.Delta | m.Finished
Said = Body | tuple[int, Body]
Script = Callable[[m.GenerateRequest], AsyncGenerator[Said, None]]
LoadScript = Callable[[], AsyncGenerator[m.LoadProgress, None]]
Context = grpc.aio.ServicerContext[Any, Any]

FINGERPRINT = "fp_fake"
CONTEXT_LENGTH = 8192
DEPLOYMENT = m.Deployment(
    max_request_tokens=CONTEXT_LENGTH,
    slots=16,
    slots_used=0,
    queue_capacity=64,
    queue_length=0,
    kv_cache_bytes=1_000_000,
    device="fake",
)


def model(model_id: str, state: m.ModelState = m.ModelState.READY) -> m.ModelInfo:
    """A model of the fake machine."""
    return m.ModelInfo(
        id=model_id,
        state=state,
        architecture="llama",
        quantization="int8",
        parameter_count=134_515_008,
        context_length=CONTEXT_LENGTH,
        size_bytes=140_000_000,
        created_unix_s=1_700_000_000,
        deployment=DEPLOYMENT if state is m.ModelState.READY else None,
    )


def words(prompt: m.Prompt) -> list[str]:
    """The words of a text or of the last message, each with the space before it; tokens are words, too."""
    match prompt:
        case m.ChatPrompt():
            text = prompt.messages[-1].content or ""
        case m.TextPrompt():
            text = prompt.text
        case m.TokenPrompt():
            text = spelled(prompt.token_ids)
    return [word if i == 0 else f" {word}" for i, word in enumerate(text.split(" "))]


def spelled(token_ids: Iterable[int]) -> str:
    """Text of tokens."""
    return " ".join(f"t{token_id}" for token_id in token_ids)


async def echo(request: m.GenerateRequest) -> AsyncGenerator[Said, None]:
    """Says the words of the last message, one token each, up to ``max_tokens``; all choices do, taking turns.

    Goes on where the request says that an answer was cut off.
    """
    spoken = words(request.prompt)
    said = spoken[: request.stop.max_tokens or len(spoken)]
    point = request.resume or m.ResumePoint(((),) * request.n)
    choices = [index for index in range(request.n) if index not in point.finished]
    for index in choices:
        yield index, m.Started(request.model, prompt_tokens=len(spoken), fingerprint=FINGERPRINT)
        if point.delivered[index]:
            yield index, m.Delta("".join(said[: len(point.delivered[index])]))
    for token_id, word in enumerate(said):
        logprobs = () if request.logprobs is None else (token_logprob(token_id, word, request.logprobs.top),)
        for index in choices:
            if token_id >= len(point.delivered[index]):
                yield index, m.Delta(word, (token_id,), logprobs)
    reason = m.FinishReason.LENGTH if len(said) < len(spoken) else m.FinishReason.STOP
    for index in choices:
        yield index, m.Finished(reason, m.Usage(len(spoken), len(said)))


def token_logprob(token_id: int, word: str, top: int) -> m.TokenLogprob:
    """Of a token as likely as not, and ``top`` others that are less likely each."""
    others = (m.TokenCandidate(100 + i, b"other", -1.0 - i) for i in range(top))
    return m.TokenLogprob(m.TokenCandidate(token_id, word.encode(), -0.5), tuple(others))


async def load() -> AsyncGenerator[m.LoadProgress, None]:
    """What the machine reports of a load before it is ready."""
    yield m.LoadProgress(m.LoadStage.LOADING, 1, 2)


def failing(error: MantlerError, after: tuple[Body, ...] = ()) -> Script:
    """A script that says ``after`` and then fails."""

    async def script(_: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        for body in after:
            yield body
        raise error

    return script


class Gate:
    """A script that stops at ``stop_after`` bodies of :func:`echo` until the test opens it."""

    def __init__(self, stop_after: int) -> None:
        self.stop_after = stop_after
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, request: m.GenerateRequest) -> AsyncGenerator[Said, None]:
        count = 0
        async for said in echo(request):
            if count == self.stop_after:
                self.reached.set()
                await self.opened.wait()
            yield said
            count += 1


class FakeRuntime:
    """The server. ``active`` counts running generations, and :meth:`idle` waits for there to be none."""

    def __init__(self, address: str = "127.0.0.1:0", security: Security | None = None, socket: str = "") -> None:
        self.address = address
        self.socket = socket
        """A Unix socket where it listens, too."""
        self.name = ""
        """Of the machine. Empty means its address."""
        self._security = security or Security()
        self.script: Script = echo
        self.load_script: LoadScript = load
        self.loads: tuple[ModelLoad, ...] = ()
        """What it says of how busy it is."""
        self.models = {known.id: known for known in (model("smollm2:135m"), model("org/other:tag"))}
        self.models["cold:1b"] = model("cold:1b", m.ModelState.STORED)
        self.requests: list[m.GenerateRequest] = []
        self.cancelled = 0
        self.thawed = asyncio.Event()
        """Cleared, the machine accepts calls and answers none, as a process that is stopped."""
        self.thawed.set()
        self.lists = asyncio.Event()
        """Cleared, the machine does not say which models it has."""
        self.lists.set()
        self.active = 0
        self.draining = False
        self.epoch = 0
        self._revision = 0
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def start(self) -> None:
        """Listens, after :meth:`kill` on the same port."""
        server = grpc.aio.server(options=(*SERVER_OPTIONS, ("grpc.so_reuseport", 0)))
        generation = _Generation(self)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(generation, server)
        relay_pb2_grpc.add_RelayServiceServicer_to_server(RelayServicer(generation.responses), server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self), server)
        self._revision = 0
        self.epoch += 1
        machine_pb2_grpc.add_MachineServiceServicer_to_server(_Machine(self), server)
        host, _, _ = self.address.rpartition(":")
        self.address = f"{host}:{self._security.listen(server, self.address)}"
        if self.socket:
            self._security.listen(server, f"unix:{self.socket}")
        await server.start()
        self._server = server

    async def kill(self) -> None:
        """Ends every call and stops listening."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def idle(self) -> None:
        """Waits until no generation runs."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.active == 0)

    async def busy(self, generations: int = 1) -> None:
        """Waits until so many generations run."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.active >= generations)

    def info(self) -> m.MachineInfo:
        """What the machine says of itself."""
        self._revision += 1
        models = tuple(sorted(self.models.values(), key=lambda known: known.id))
        return m.MachineInfo(self.name or self.address, self.epoch, self._revision, self.address, models, self.draining)

    def load(self) -> LoadReport:
        """How busy it says that it is."""
        return LoadReport(MachineId(self.name or self.address), self.epoch, self._revision, self.loads)

    def known(self, model_id: str) -> m.ModelInfo:
        """A model of the store. Raises MODEL_NOT_FOUND."""
        if model_id not in self.models:
            raise MantlerError(ErrorCode.MODEL_NOT_FOUND, "The model is not known.", param="model")
        return self.models[model_id]

    def ready(self, model_id: str) -> m.ModelInfo:
        """A model that answers. Raises MODEL_NOT_FOUND."""
        found = self.known(model_id)
        if found.state is not m.ModelState.READY:
            raise MantlerError(ErrorCode.MODEL_NOT_FOUND, "The model is not loaded.", param="model")
        return found

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Counts one generation."""
        self.active += 1
        async with self._changed:
            self._changed.notify_all()
        try:
            yield
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.active -= 1
            async with self._changed:
                self._changed.notify_all()


class _Generation(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    async def Generate(  # noqa: N802
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        try:
            async with contextlib.aclosing(self.responses(request)) as responses:
                async for response in responses:
                    yield response
        except MantlerError as error:
            await abort(context, error)

    async def responses(
        self, request: generation_pb2.GenerateRequest
    ) -> AsyncGenerator[generation_pb2.GenerateResponse, None]:
        wanted = wire.request_from_proto(request)
        self._runtime.requests.append(wanted)
        self._runtime.ready(wanted.model)
        async with self._runtime.running(), contextlib.aclosing(self._runtime.script(wanted)) as bodies:
            seq = 0
            async for said in bodies:
                await self._runtime.thawed.wait()
                index, body = said if isinstance(said, tuple) else (0, said)
                yield wire.event_to_proto(m.Event(seq, index, body))
                seq += 1

    async def CountTokens(  # noqa: N802
        self, request: generation_pb2.CountTokensRequest, context: Context
    ) -> generation_pb2.CountTokensResponse:
        try:
            self._runtime.ready(request.model)
            spoken = words(wire.count_request_from_proto(request))
        except MantlerError as error:
            await abort(context, error)
        ids = range(len(spoken)) if request.include_token_ids else ()
        return generation_pb2.CountTokensResponse(tokens=len(spoken), context_length=CONTEXT_LENGTH, token_ids=ids)

    async def Detokenize(  # noqa: N802
        self, request: generation_pb2.DetokenizeRequest, context: Context
    ) -> generation_pb2.DetokenizeResponse:
        try:
            self._runtime.ready(request.model)
        except MantlerError as error:
            await abort(context, error)
        return generation_pb2.DetokenizeResponse(text=spelled(request.token_ids))


class _Models(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    async def ListModels(  # noqa: N802
        self, request: model_pb2.ListModelsRequest, context: Context
    ) -> model_pb2.ListModelsResponse:
        await self._runtime.thawed.wait()
        await self._runtime.lists.wait()
        models = sorted(self._runtime.models.values(), key=lambda known: known.id)
        return model_pb2.ListModelsResponse(models=[wire.model_to_proto(known) for known in models])

    async def GetModel(  # noqa: N802
        self, request: model_pb2.GetModelRequest, context: Context
    ) -> model_pb2.GetModelResponse:
        try:
            known = self._runtime.known(request.model)
        except MantlerError as error:
            await abort(context, error)
        return model_pb2.GetModelResponse(model=wire.model_to_proto(known))

    async def LoadModel(  # noqa: N802
        self, request: model_pb2.LoadModelRequest, context: Context
    ) -> AsyncIterator[model_pb2.LoadModelResponse]:
        try:
            self._runtime.known(request.model)
        except MantlerError as error:
            await abort(context, error)
        async with contextlib.aclosing(self._runtime.load_script()) as reports:
            async for report in reports:
                yield wire.progress_to_proto(report)
        ready = self._runtime.models[request.model] = model(request.model)
        yield wire.progress_to_proto(m.LoadProgress(m.LoadStage.READY, 2, 2, ready))

    async def UnloadModel(  # noqa: N802
        self, request: model_pb2.UnloadModelRequest, context: Context
    ) -> model_pb2.UnloadModelResponse:
        try:
            self._runtime.ready(request.model)
        except MantlerError as error:
            await abort(context, error)
        self._runtime.models[request.model] = model(request.model, m.ModelState.STORED)
        return model_pb2.UnloadModelResponse()


class _Machine(machine_pb2_grpc.MachineServiceServicer):
    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    async def GetMachine(  # noqa: N802
        self, request: machine_pb2.GetMachineRequest, context: Context
    ) -> machine_pb2.GetMachineResponse:
        await self._runtime.thawed.wait()
        await self._runtime.lists.wait()
        return machine_pb2.GetMachineResponse(
            machine=wire.machine_to_proto(self._runtime.info()), load=wire.load_to_proto(self._runtime.load())
        )

    async def SetDraining(  # noqa: N802
        self, request: machine_pb2.SetDrainingRequest, context: Context
    ) -> machine_pb2.SetDrainingResponse:
        self._runtime.draining = request.draining
        return machine_pb2.SetDrainingResponse()
