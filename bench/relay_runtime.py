"""A runtime without a model: real services and real streams, one token of every stream per step.

A request for the model ``step:10`` gets a token every 10 ms. Each token's text is the time at which it was turned into
text, in nanoseconds of the clock that all processes of a machine share.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence as Items
from typing import cast

import grpc
import uvloop

from mantler.client import SERVER_OPTIONS
from mantler.mesh.machine import MachineId
from mantler.messages import Deployment, FinishReason, GenerateRequest, ModelInfo, ModelState
from mantler.v1 import generation_pb2_grpc, machine_pb2_grpc, model_pb2_grpc, relay_pb2_grpc
from runtime_server.deployed import DeployedModel
from runtime_server.deployments import Deployments
from runtime_server.engine.engine import Engine, Sink
from runtime_server.engine.generation import Generation
from runtime_server.engine.output_text import OutputText
from runtime_server.engine.sequence import Sequence
from runtime_server.machine import ThisMachine
from runtime_server.server import MAX_STREAMS
from runtime_server.services.generation import GenerationServicer
from runtime_server.services.machine import MachineServicer
from runtime_server.services.model import ModelServicer
from runtime_server.services.relay import RelayServicer

PREFIX = "step:"
IDLE_STEP_MS = 3_600_000
"""One token, then silence."""
STEPS_MS = (1, 2, 5, 10, 14, 20, 50, 100, IDLE_STEP_MS)
"""Models that are listed, which facades want to know before they send anything."""


class _Clock(list[bytes]):
    """The bytes of the only token: the time."""

    def __getitem__(self, index: object) -> bytes:  # type: ignore[override]
        return b" %d" % time.monotonic_ns()


class Steps:
    """Stands for an engine: hands every sequence one token per step, on the event loop, as an engine's steps do."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._sinks: dict[int, tuple[Sink, Sequence]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._said: dict[int, int] = {}

    def submit(self, choices: Items[tuple[Sequence, Sink]]) -> None:
        """See :class:`runtime_server.engine.engine.Engine`."""
        for sequence, sink in choices:
            self._sinks[id(sequence)] = sink, sequence
            self._said[id(sequence)] = 0
            sink.admitted()
        if self._timer is None:
            self._step()

    def cancel(self, sequence: Sequence) -> None:
        """See :class:`runtime_server.engine.engine.Engine`."""
        self._sinks.pop(id(sequence), None)
        self._said.pop(id(sequence), None)

    def _step(self) -> None:
        for number, (sink, sequence) in list(self._sinks.items()):
            self._said[number] += 1
            last = self._said[number] == sequence.max_tokens
            sink.token(0, FinishReason.LENGTH if last else None, None)
            if last:
                self.cancel(sequence)
        self._timer = asyncio.get_running_loop().call_later(self._step_s, self._step) if self._sinks else None


class Models:
    """Stands for the deployed models: one for every length of a step that is asked for."""

    def __init__(self) -> None:
        self._steps: dict[str, Steps] = {}
        self.draining = False
        self.ready: list[DeployedModel] = []

    def serving(self, model: str) -> Models:
        """See :class:`runtime_server.deployments.Deployments`."""
        self._steps.setdefault(model, Steps(float(model.removeprefix(PREFIX)) / 1000))
        return self

    async def models(self) -> list[ModelInfo]:
        """See :class:`runtime_server.deployments.Deployments`."""
        return [_info(f"{PREFIX}{step_ms:g}") for step_ms in STEPS_MS]

    async def generation(self, request: GenerateRequest) -> Generation:
        """See :class:`runtime_server.deployed.Deployed`."""
        sequence = Sequence(range(7), request.sampling, 0, request.stop.max_tokens or 1)
        engine = cast(Engine, self._steps[request.model])
        table = _Clock([b""])
        return Generation(
            engine,
            [sequence],
            model=request.model,
            fingerprint="fp_relay",
            token_bytes=table,
            output=lambda _: OutputText(table),
        )


def _info(model: str) -> ModelInfo:
    deployment = Deployment(
        max_request_tokens=2**20,
        slots=MAX_STREAMS,
        slots_used=0,
        queue_capacity=0,
        queue_length=0,
        kv_cache_bytes=0,
        device="none",
    )
    return ModelInfo(model, ModelState.READY, "none", "none", 0, 2**20, 0, 0, deployment)


async def serve(address: str) -> None:
    """Serves until the process is ended."""
    server = grpc.aio.server(options=[*SERVER_OPTIONS, ("grpc.max_concurrent_streams", MAX_STREAMS)])
    models = cast(Deployments, Models())
    generation = GenerationServicer(models)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(generation, server)
    relay_pb2_grpc.add_RelayServiceServicer_to_server(RelayServicer(generation.responses), server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(models), server)
    machine = ThisMachine(MachineId("relay"), address, models)
    machine_pb2_grpc.add_MachineServiceServicer_to_server(MachineServicer(machine), server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(prog="relay_runtime", description=__doc__)
    parser.add_argument("address", help="HOST:PORT to listen on")
    uvloop.run(serve(parser.parse_args().address))


if __name__ == "__main__":
    main()
