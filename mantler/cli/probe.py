"""Asks a runtime and a facade whether they serve. Every question is answered within ``TIMEOUT_S``."""

from __future__ import annotations

import asyncio
import http.client
from typing import TYPE_CHECKING

from mantler.config import split_address
from mantler.security.files import TlsFiles
from mantler.security.https import pinned_context

if TYPE_CHECKING:
    from mantler.security.transport import Security

TIMEOUT_S = 1.0


async def runtime_serves(address: str, security: Security) -> bool:
    """Whether ``grpc.health.v1`` at ``address`` says SERVING for the whole server."""
    return await runtime_trouble(address, security) is None


async def runtime_trouble(address: str, security: Security) -> str | None:
    """Why ``grpc.health.v1`` at ``address`` does not say SERVING for the whole server, or ``None`` where it does.

    Raises ``SecurityError`` where ``security`` does not allow the address.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with security.channel(address, (("grpc.enable_http_proxy", 0),)) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S, wait_for_ready=False
            )
        except grpc.aio.AioRpcError as error:
            return error.details() or error.code().name
    serves = answer.status == health_pb2.HealthCheckResponse.SERVING
    return None if serves else "it says that it does not serve now"


async def facade_serves(address: str, https: TlsFiles) -> bool:
    """Whether ``GET /health`` at ``address`` answers 200, over TLS where ``https`` names a certificate."""
    return await asyncio.to_thread(_health_is_ok, address, https)


def _health_is_ok(address: str, https: TlsFiles) -> bool:
    host, port = split_address(address)
    connection: http.client.HTTPConnection
    if https:
        try:
            context = pinned_context(https)
        except OSError:
            return False
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
