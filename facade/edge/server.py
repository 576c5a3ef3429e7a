"""The facade's gRPC server, in the event loop of its HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from mantler.client import SERVER_OPTIONS
from mantler.reflection import enable_reflection
from mantler.security.transport import Security
from mantler.v1 import generation_pb2

MAX_STREAMS = 4096
"""RPCs that one connection may have open."""
CLOSE_S = 1.0
"""Time for the last calls to end after their work has."""

GENERATION = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name

_SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclass(frozen=True, slots=True)
class Served:
    """A service and who answers it. Authentication is the servicer's.

    Where ``over_http`` is set, its methods are there as JSON as well (:mod:`facade.edge.transcoding`), and the servicer
    has a coroutine ``authenticate(context)``, which raises for a caller who may not call it.
    """

    descriptor: ServiceDescriptor
    servicer: Any
    add: Callable[[Any, grpc.aio.Server], None]
    """The generated ``add_…Servicer_to_server``."""
    over_http: bool = True


class EdgeServer:
    """Serves ``services``, with health and reflection. Use as a context manager; leaving ends what still runs."""

    def __init__(self, services: Sequence[Served]) -> None:
        self._services = services
        self._reports: set[asyncio.Task[None]] = set()
        self._health = health_aio.HealthServicer()
        self._server = grpc.aio.server(
            # Without it a second server on the same port would share its connections silently.
            options=[*SERVER_OPTIONS, ("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", MAX_STREAMS)],
        )
        for served in services:
            served.add(served.servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [served.descriptor.full_name for served in services]
        enable_reflection(self._server, [*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        await self._server.stop(CLOSE_S)

    def report(self, generating: bool) -> None:
        """Says to those who watch the health whether some machine generates."""
        status = _SERVING if generating else health_pb2.HealthCheckResponse.NOT_SERVING
        task = asyncio.create_task(self._health.set(GENERATION, status))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def refuse(self) -> None:
        """Says to those who watch the health that nothing more is served."""
        await self._health.enter_graceful_shutdown()

    async def start(self, address: str, security: Security) -> int:
        """Binds and serves. Returns the port. Raises ``OSError`` if the address cannot be bound."""
        try:
            port = security.listen(self._server, address, guarded=True)
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen at {address}") from error
        for name in {"", *(served.descriptor.full_name for served in self._services)} - {GENERATION}:
            await self._health.set(name, _SERVING)
        await self._server.start()
        return port
