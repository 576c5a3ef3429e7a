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
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


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
    """Serves ``services``, with health and reflection. Use as a context manager; leaving ends what still runs.

    Args:
        max_calls: that may be open at once, over all connections.
    """

    def __init__(self, services: Sequence[Served], max_calls: int) -> None:
        self._services = services
        self._generating = False
        self._reported = asyncio.Event()
        self._telling: asyncio.Task[None] | None = None
        self._health = health_aio.HealthServicer()
        self._server = grpc.aio.server(
            # Without it a second server on the same port would share its connections silently.
            options=[*SERVER_OPTIONS, ("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", MAX_STREAMS)],
            maximum_concurrent_rpcs=max_calls,
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
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait([self._telling])

    def report(self, generating: bool) -> None:
        """Says to those who watch the health whether some machine generates."""
        self._generating = generating
        self._reported.set()

    async def refuse(self) -> None:
        """Says to those who watch the health that nothing more is served."""
        await self._health.enter_graceful_shutdown()

    async def start(self, address: str, security: Security) -> int:
        """Binds and serves, by its health without machines until :meth:`report`. Returns the port.

        Raises ``OSError`` if the address cannot be bound.
        """
        try:
            port = security.listen(self._server, address, guarded=True)
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen at {address}") from error
        # The whole serves without a machine as well: machines that join find the facade by its health.
        for name in {"", *(served.descriptor.full_name for served in self._services)} - {GENERATION}:
            await self._health.set(name, _SERVING)
        await self._health.set(GENERATION, _NOT_SERVING)
        self._telling = asyncio.create_task(self._tell())
        await self._server.start()
        return port

    async def _tell(self) -> None:
        while True:
            await self._reported.wait()
            self._reported.clear()
            await self._health.set(GENERATION, _SERVING if self._generating else _NOT_SERVING)
