"""Serves a facade over a connection that this machine dialled.

A tunnel carries the bytes of one HTTP/2 connection to the runtime's own server, so everything that a connection can do
works through it: streams, cancels, deadlines, flow control.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import grpc

from mantler.v1 import mesh_pb2, mesh_pb2_grpc

CHUNK_BYTES = 64 * 1024

Metadata = tuple[tuple[str, str], ...]

logger = logging.getLogger(__name__)


async def carry(stub: mesh_pb2_grpc.MeshServiceAsyncStub, metadata: Metadata, tunnel_id: str, socket: str) -> None:
    """Carries bytes between the facade's tunnel ``tunnel_id`` and the server at the Unix socket, until either ends."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        logger.exception("the runtime's own server does not take a tunnel")
        return
    with contextlib.closing(writer):
        call = stub.Tunnel(_from_server(tunnel_id, reader), metadata=metadata)
        try:
            async for message in call:
                writer.write(message.data)
                await writer.drain()
        except (grpc.aio.AioRpcError, ConnectionError) as error:
            logger.info("a tunnel ended: %s", error.code() if isinstance(error, grpc.aio.AioRpcError) else error)
        finally:
            call.cancel()


async def _from_server(tunnel_id: str, reader: asyncio.StreamReader) -> AsyncIterator[mesh_pb2.TunnelRequest]:
    yield mesh_pb2.TunnelRequest(tunnel_id=tunnel_id)
    while data := await reader.read(CHUNK_BYTES):
        yield mesh_pb2.TunnelRequest(data=data)
