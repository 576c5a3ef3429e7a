"""Asks a runtime and a facade whether they serve. Every question is answered within ``TIMEOUT_S``."""

from __future__ import annotations

import asyncio
import http.client

from mantler.config import split_address

TIMEOUT_S = 1.0


async def runtime_serves(address: str) -> bool:
    """Whether ``grpc.health.v1`` at ``address`` says SERVING for the whole server."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S, wait_for_ready=False
            )
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def facade_serves(address: str) -> bool:
    """Whether ``GET /health`` at ``address`` answers 200."""
    return await asyncio.to_thread(_health_is_ok, address)


def _health_is_ok(address: str) -> bool:
    host, port = split_address(address)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
