"""Keeps this machine in the mesh of one facade, for as long as it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any

import grpc

from mantler import wire
from mantler.client import CHANNEL_OPTIONS
from mantler.grpc_errors import from_rpc_error
from mantler.security.transport import Security
from mantler.v1 import mesh_pb2, mesh_pb2_grpc
from runtime_server.machine import ThisMachine
from runtime_server.mesh.tunnel import carry

RETRY_S = 0.5
"""Between two attempts to reach a facade, so that one that is back has its machines at once …"""
REFUSED_RETRY_S = 5.0
"""… and after a refusal, which only a person can change."""
FAREWELL_S = 1.0
MIN_INTERVAL_S = 0.05
MAX_TUNNELS = 8

logger = logging.getLogger(__name__)


class Joining:
    """Joins the mesh of ``facade`` and comes back whenever the connection is lost.

    Args:
        facade: ``HOST:PORT`` of its gRPC server.
        machine: what this machine says of itself.
        address: where the facade is to dial this machine; empty where that is in vain.
        token: of this machine.
        socket: the runtime's own server as a path of a Unix socket, where tunnels end; empty where none are opened.
    """

    def __init__(
        self, facade: str, machine: ThisMachine, *, address: str, token: str, socket: str, security: Security
    ) -> None:
        self._facade = facade
        self._machine = machine
        self._address = address
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._socket = socket
        self._interval_s = RETRY_S
        self._trouble = ""
        """What was logged last."""
        self._leaving = asyncio.Event()
        self._tunnels: set[asyncio.Task[None]] = set()
        self._channel = security.channel(facade, CHANNEL_OPTIONS)
        self._stub: mesh_pb2_grpc.MeshServiceAsyncStub = mesh_pb2_grpc.MeshServiceStub(self._channel)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins, in the background."""
        self._task = asyncio.create_task(self._run(), name=f"join {self._facade}")

    async def leave(self) -> None:
        """Says farewell, so that no new request comes. Tunnels stay open."""
        self._leaving.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=FAREWELL_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def close(self) -> None:
        """Ends tunnels and the connection."""
        await self.leave()
        for tunnel in self._tunnels:
            tunnel.cancel()
        await asyncio.gather(*self._tunnels, return_exceptions=True)
        await self._channel.close(None)

    async def _run(self) -> None:
        while not self._leaving.is_set():
            wait_s = RETRY_S
            try:
                await self._join()
                self._report("the facade has ended the connection")
            except grpc.aio.AioRpcError as failure:
                error = from_rpc_error(failure)
                self._report(error.message)
                if not error.row.retryable:
                    wait_s = REFUSED_RETRY_S
            await _first(self._leaving.wait(), timeout_s=wait_s)

    async def _join(self) -> None:
        """One connection, until it is lost or this machine has said farewell."""
        call = self._stub.Join(self._words(), metadata=self._metadata)
        try:
            async for message in call:
                if message.HasField("welcome"):
                    self._welcomed(message.welcome)
                elif message.HasField("open_tunnel"):
                    self._open_tunnel(message.open_tunnel.tunnel_id)
        finally:
            call.cancel()

    async def _words(self) -> AsyncIterator[mesh_pb2.JoinRequest]:
        """What this machine has to say in one connection."""
        said = None
        while not self._leaving.is_set():
            info = await self._machine.info()
            info = replace(info, address=self._address, opens_tunnels=bool(self._socket))
            if info != said:
                said = info
                yield mesh_pb2.JoinRequest(machine=wire.machine_to_proto(info))
            yield mesh_pb2.JoinRequest(load=wire.load_to_proto(self._machine.load()))
            await _first(self._machine.news(), self._leaving.wait(), timeout_s=self._interval_s)
        yield mesh_pb2.JoinRequest(farewell=mesh_pb2.Farewell())

    def _welcomed(self, welcome: mesh_pb2.Welcome) -> None:
        self._interval_s = max(MIN_INTERVAL_S, welcome.report_interval.ToNanoseconds() / 1e9)
        self._trouble = ""
        logger.info("in the mesh of %s, reached %s", self._facade, welcome.address or "through a tunnel")

    def _open_tunnel(self, tunnel_id: str) -> None:
        if not self._socket or len(self._tunnels) >= MAX_TUNNELS:
            logger.warning("%s asks for a tunnel too many", self._facade)
            return
        task = asyncio.create_task(carry(self._stub, self._metadata, tunnel_id, self._socket))
        self._tunnels.add(task)
        task.add_done_callback(self._tunnels.discard)

    def _report(self, trouble: str) -> None:
        """Logs the same trouble once."""
        if self._trouble != trouble:
            self._trouble = trouble
            logger.warning("not in the mesh of %s: %s", self._facade, trouble)


async def _first(*waits: Coroutine[Any, Any, object], timeout_s: float) -> None:
    """Returns when the first of them does, or after ``timeout_s``."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
