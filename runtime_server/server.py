"""The runtime's process: gRPC server, health, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import aclosing

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from mantler.client import SERVER_OPTIONS
from mantler.config import RuntimeSettings, join_address, split_address
from mantler.errors import MantlerError
from mantler.etcd import Etcd
from mantler.mesh.machine import MachineId
from mantler.reflection import enable_reflection
from mantler.security.loopback import is_wildcard
from mantler.security.transport import Security
from mantler.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    machine_pb2,
    machine_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    relay_pb2,
    relay_pb2_grpc,
)
from runtime_server.backends.choice import check_device
from runtime_server.backends.devices import DeviceError
from runtime_server.deployments import Deployments
from runtime_server.machine import ThisMachine
from runtime_server.mesh.announce import Announcing
from runtime_server.mesh.join import Joining
from runtime_server.mesh.reach import address_for
from runtime_server.models.store import ModelStore
from runtime_server.services.generation import GenerationServicer
from runtime_server.services.machine import MachineServicer
from runtime_server.services.model import ModelServicer
from runtime_server.services.relay import RelayServicer

logger = logging.getLogger(__name__)

GENERATION = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name
MACHINE = machine_pb2.DESCRIPTOR.services_by_name["MachineService"].full_name
RELAY = relay_pb2.DESCRIPTOR.services_by_name["RelayService"].full_name
MODEL = model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
STALL_S = 60.0
"""An engine whose step runs longer than this hangs, and is reported as not serving."""
WATCH_INTERVAL_S = 1.0
MAX_STREAMS = 4096
"""RPCs that one connection may have open."""
CLOSE_S = 5.0
"""Time for the last RPCs to end after their engines have stopped."""
SWITCH_INTERVAL_S = 0.0005
"""How long an engine that comes back from its device waits for the interpreter while the event loop is busy."""


class RuntimeFailure(Exception):  # noqa: N818 - what happened, not a mistake of the caller
    """The process cannot go on serving. It should exit with an error, so that it is restarted."""


class RuntimeServer:
    """One gRPC server with everything behind it.

    Args:
        settings: of the runtime.

    Raises: ``SecurityError`` where its files of TLS cannot be used.
    """

    def __init__(self, settings: RuntimeSettings) -> None:
        self._settings = settings
        self._security = Security.load(settings)
        self._deployments = Deployments(settings, ModelStore(settings.models_dir), self._report_health)
        self._health = health_aio.HealthServicer()
        self._stopped = asyncio.Event()
        self._started = False
        """Whether the settings' models are loaded."""
        self._updates: set[asyncio.Task[None]] = set()
        self._server = grpc.aio.server(
            # Without it a second server on the same port would share its connections silently.
            options=[*SERVER_OPTIONS, ("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", MAX_STREAMS)],
        )
        generation = GenerationServicer(self._deployments)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(generation, self._server)
        self._relays = RelayServicer(generation.responses)
        relay_pb2_grpc.add_RelayServiceServicer_to_server(self._relays, self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(self._deployments), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._machine: ThisMachine | None = None
        self._joinings: list[Joining | Announcing] = []
        self._sockets: tempfile.TemporaryDirectory[str] | None = None
        """Where tunnels end, which nobody else can reach."""
        names = (GENERATION, MODEL, MACHINE, RELAY, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        enable_reflection(self._server, names)

    async def start(self) -> int:
        """Binds, serves, and loads the settings' models. Returns the port.

        Raises :class:`RuntimeFailure` where the device is not there, the address cannot be bound or a model cannot be
        loaded, and ``SecurityError`` where others could reach the address and nothing guards it.
        """
        await self._set_health()
        try:
            await asyncio.to_thread(check_device, self._settings.device)
        except DeviceError as error:
            raise RuntimeFailure(f"{error} ({error.hint})") from error
        try:
            port = self._security.listen(self._server, self._settings.runtime)
        except RuntimeError as error:
            raise RuntimeFailure(f"cannot listen on {self._settings.runtime}") from error
        self._present(port)
        await self._server.start()
        logger.info("serving gRPC on port %d", port)
        for name in self._settings.model:
            try:
                async with aclosing(self._deployments.load(name, pull=False)) as reports:
                    async for _ in reports:
                        pass
            except MantlerError as error:
                raise RuntimeFailure(f"cannot load {name}: {error.message}") from error
        self._started = True
        await self._set_health()
        for joining in self._joinings:
            joining.start()
        return port

    def stop(self) -> None:
        """Makes :meth:`wait` return."""
        self._stopped.set()

    async def wait(self) -> None:
        """Waits until :meth:`stop`, keeping the health true. Raises :class:`RuntimeFailure` where an engine stopped."""
        while not self._stopped.is_set():
            await self._set_health()
            if (failed := next((model for model in self._deployments.ready if model.engine.failed), None)) is not None:
                raise RuntimeFailure(f"the engine of {failed.manifest.id} has stopped")
            try:
                await asyncio.wait_for(self._stopped.wait(), WATCH_INTERVAL_S)
            except TimeoutError:
                continue

    async def close(self) -> None:
        """Refuses new requests, lets running ones finish for ``drain_timeout_s``, then frees everything."""
        await self._health.enter_graceful_shutdown()
        self._deployments.draining = True
        await asyncio.gather(*(joining.leave() for joining in self._joinings))
        self._relays.drain()
        await self._server.stop(self._settings.drain_timeout_s)
        await asyncio.gather(*(joining.close() for joining in self._joinings))
        await self._deployments.close()
        await self._server.stop(CLOSE_S)
        if self._sockets is not None:
            self._sockets.cleanup()

    def _present(self, port: int) -> None:
        """Says who this machine is, to those who ask and to the facades whose mesh it is to join."""
        settings = self._settings
        listening = join_address(split_address(settings.runtime)[0], port)
        name = settings.machine_id or f"{socket.gethostname()}:{port}"
        self._machine = ThisMachine(MachineId(name), settings.advertise or listening, self._deployments)
        machine_pb2_grpc.add_MachineServiceServicer_to_server(MachineServicer(self._machine), self._server)
        addresses = {
            facade: address_for(facade, settings.reach, listening, settings.advertise) for facade in settings.mesh
        }
        path = ""
        if settings.mesh and settings.reach != "dial":
            self._sockets = tempfile.TemporaryDirectory(prefix="mantler-")
            path = f"{self._sockets.name}/runtime"
            self._security.listen(self._server, f"unix:{path}")
        self._joinings += [
            Joining(
                facade,
                self._machine,
                address=address,
                token=settings.machine_token or "",
                socket=path,
                security=self._security,
            )
            for facade, address in addresses.items()
        ]
        if settings.etcd:
            self._joinings.append(self._announcing(self._machine, listening))

    def _announcing(self, machine: ThisMachine, listening: str) -> Announcing:
        # Whoever reads it in etcd does not see where it comes from.
        address = self._settings.advertise or listening
        if is_wildcard(split_address(address)[0]):
            raise RuntimeFailure(f"etcd needs an address that facades can dial, not {address}: set --advertise")
        return Announcing(Etcd.of(self._settings), self._settings.etcd_prefix, machine, address)

    def _report_health(self) -> None:
        if self._machine is not None:
            self._machine.tell()
        task = asyncio.create_task(self._set_health())
        self._updates.add(task)
        task.add_done_callback(self._updates.discard)

    async def _set_health(self) -> None:
        """Generation serves while a model is ready and every engine makes progress; the model service always does.

        The whole serves as generation does once the settings' models are loaded. Without a model in the settings it
        serves without one: a caller may load one at any time.
        """
        models = self._deployments.ready
        moving = all(not model.engine.failed and model.engine.step_age_s() < STALL_S for model in models)
        generating = bool(models) and moving
        await self._health.set(MODEL, _status(True))
        await self._health.set(GENERATION, _status(generating))
        await self._health.set("", _status(self._started and (generating or not (models or self._settings.model))))


async def serve(settings: RuntimeSettings, on_ready: Callable[[int], None] = lambda port: None) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Args:
        on_ready: called with the port once the models are loaded.

    Raises: :class:`RuntimeFailure` where the process should exit with an error.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    loop = asyncio.get_running_loop()
    server = RuntimeServer(settings)
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, server.stop)
    try:
        on_ready(await server.start())
        await server.wait()
        logger.info("draining for up to %g s", settings.drain_timeout_s)
    finally:
        await server.close()
        for number in signals:
            loop.remove_signal_handler(number)
    logger.info("stopped")


def _status(serving: bool) -> int:
    status = health_pb2.HealthCheckResponse
    value: int = status.SERVING if serving else status.NOT_SERVING
    return value
