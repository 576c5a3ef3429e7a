"""MeshService over gRPC: machines join, and open tunnels."""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from collections.abc import AsyncIterator
from typing import Any

import grpc

from facade.edge.tunnels import Tunnels
from mantler import wire
from mantler.config import join_address, split_address
from mantler.errors import ErrorCode, MantlerError, invalid
from mantler.grpc_errors import border
from mantler.mesh.machine import MachineId
from mantler.messages import MachineInfo
from mantler.routing.registry import LEASE_S, REPORT_S, Registry, Seat, machine_exists
from mantler.security.errors import SecurityError
from mantler.security.transport import Security
from mantler.tenancy.tokens import TokenStore
from mantler.v1 import mesh_pb2, mesh_pb2_grpc

SILENT_S = 5 * LEASE_S
"""A connection that brings nothing for so long is ended; its machine has been offline for a while."""
RECHECK_S = 5.0
"""How soon a machine whose token was revoked is sent away."""
DIAL_S = 1.0

Context = grpc.aio.ServicerContext[Any, Any]
Requests = AsyncIterator[mesh_pb2.JoinRequest]


class MeshServicer(mesh_pb2_grpc.MeshServiceServicer):
    """Lets machines with a good token in."""

    def __init__(self, registry: Registry, tokens: TokenStore, tunnels: Tunnels, security: Security) -> None:
        self._registry = registry
        self._security = security
        self._tokens = tokens
        self._tunnels = tunnels

    async def Join(  # type: ignore[override]  # noqa: N802
        self, requests: Requests, context: Context
    ) -> None:
        """See the proto."""
        async with border(context, "Join"):
            holder = await self._authenticate(context)
            first = await _next(requests, asyncio.Event())
            if first is None or not first.HasField("machine"):
                raise invalid("machine", "must be the first message.")
            await self._seated(wire.machine_from_proto(first.machine), holder, requests, context)

    async def Tunnel(  # type: ignore[override]  # noqa: N802
        self, requests: AsyncIterator[mesh_pb2.TunnelRequest], context: Context
    ) -> None:
        """See the proto."""
        async with border(context, "Tunnel"):
            await self._authenticate(context)
            first = await anext(requests, None)
            if first is None or not first.tunnel_id:
                raise invalid("tunnel_id", "must be in the first message.")

            async def incoming() -> AsyncIterator[bytes]:
                async for message in requests:
                    yield message.data

            async def send(data: bytes) -> None:
                await context.write(mesh_pb2.TunnelResponse(data=data))

            await self._tunnels.carry(first.tunnel_id, incoming(), send)

    async def _seated(self, machine: MachineInfo, holder: str, requests: Requests, context: Context) -> None:
        """The machine is in the mesh for as long as it speaks."""

        async def ask(tunnel_id: str) -> None:
            await context.write(mesh_pb2.JoinResponse(open_tunnel=mesh_pb2.OpenTunnel(tunnel_id=tunnel_id)))

        address = await self._dialable(machine.address, context.peer())
        tunnel = not address
        if tunnel:
            if not machine.opens_tunnels:
                raise invalid("machine.address", "cannot be reached from the facade, and the machine opens no tunnels.")
            address = await self._tunnels.open(MachineId(machine.id), ask)
        farewell = False
        try:
            seat = self._registry.join(machine, address, holder)
            try:
                await context.write(mesh_pb2.JoinResponse(welcome=_welcome("" if tunnel else address)))
                farewell = await self._keep(machine, seat, requests, context)
            finally:
                self._registry.leave(machine.id, seat)
        finally:
            if tunnel:
                self._tunnels.lose(MachineId(machine.id), ask, for_good=farewell)

    async def _keep(self, machine: MachineInfo, seat: Seat, requests: Requests, context: Context) -> bool:
        """Listens until the machine has said farewell (true) or its connection is lost (false)."""
        checked_s = time.monotonic()
        while (message := await _next(requests, seat.over)) is not None:
            if message.HasField("machine"):
                seat.registered(wire.machine_from_proto(message.machine))
            elif message.HasField("load"):
                seat.reported(wire.load_from_proto(MachineId(machine.id), message.load))
            else:
                seat.left()
                return True
            if time.monotonic() > checked_s + RECHECK_S:
                await self._check_again(seat, context)
                checked_s = time.monotonic()
        if seat.over.is_set():
            if not self._registry.closed:
                raise machine_exists(machine.id)
            return False
        await self._check_again(seat, context)
        return False

    async def _check_again(self, seat: Seat, context: Context) -> None:
        """Sends a machine away whose token was revoked. At once: what comes of its streams would keep it online."""
        try:
            await self._authenticate(context)
        except MantlerError as error:
            # Machines go on serving while the database is away.
            if error.code is not ErrorCode.STORE_UNAVAILABLE:
                seat.left()
                raise

    async def _dialable(self, address: str, peer: str) -> str:
        """Where a machine that says ``address`` and comes from ``peer`` can be dialled; empty where it cannot."""
        if not address:
            return ""
        host, port = _place(address, peer)
        try:
            self._security.check_dialing([join_address(host, port)])
            async with asyncio.timeout(DIAL_S):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError, SecurityError):
            return ""
        writer.close()
        return join_address(host, port)

    async def _authenticate(self, context: Context) -> str:
        """The id of the caller's token. Raises INVALID_TOKEN, or STORE_UNAVAILABLE where it cannot be checked."""
        values = [value for name, value in context.invocation_metadata() or () if name == "authorization"]
        scheme, _, token = str(values[0] if values else "").partition(" ")
        record = await self._tokens.find(token.strip()) if scheme.lower() == "bearer" else None
        if record is None or record.revoked_unix_s is not None:
            raise MantlerError(
                ErrorCode.INVALID_TOKEN,
                "The machine token is not valid. `mantler tokens create` on the facade makes one, and "
                "MANTLER_MACHINE_TOKEN is where the runtime finds it.",
            )
        return record.id


async def _next(requests: Requests, unless: asyncio.Event) -> mesh_pb2.JoinRequest | None:
    """The next message; ``None`` at the end, after a long silence, or when ``unless`` is set before."""
    reading = asyncio.ensure_future(anext(requests, None))
    instead = asyncio.create_task(unless.wait())
    try:
        await asyncio.wait({reading, instead}, timeout=SILENT_S, return_when=asyncio.FIRST_COMPLETED)
        return None if instead.done() or not reading.done() else reading.result()
    finally:
        reading.cancel()
        instead.cancel()


def _place(address: str, peer: str) -> tuple[str, int]:
    """Host and port. ``peer`` is as gRPC writes it: ``ipv4:10.0.0.7:4242`` or ``ipv6:%5B::1%5D:4242``."""
    kind, _, rest = urllib.parse.unquote(peer).partition(":")
    try:
        if address.startswith(":") and kind in ("ipv4", "ipv6"):
            return split_address(
                split_address(rest)[0] + address if kind == "ipv4" else f"[{split_address(rest)[0]}]{address}"
            )
        return split_address(address)
    except ValueError as error:
        raise invalid("machine.address", f"{error}.") from error


def _welcome(address: str) -> mesh_pb2.Welcome:
    welcome = mesh_pb2.Welcome(address=address)
    welcome.lease.FromNanoseconds(round(LEASE_S * 1e9))
    welcome.report_interval.FromNanoseconds(round(REPORT_S * 1e9))
    return welcome
