"""A typed client of a facade's AdminService, for operators.

It speaks plain values, as :class:`mantler.client.RuntimeClient` does, and needs the operator's token.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator
from types import TracebackType
from typing import Self

import grpc

from mantler import messages as m
from mantler import wire
from mantler.client import CHANNEL_OPTIONS, UNARY_TIMEOUT_S
from mantler.grpc_errors import carried
from mantler.mesh.status import MachineStatus
from mantler.security.transport import Security
from mantler.v1 import admin_pb2, admin_pb2_grpc

UNDEPLOY_TIMEOUT_S = 3700.0
"""A machine lets requests finish for an hour at most."""


class NoFacadeError(Exception):
    """What answers at the address is no facade that could do it, or nothing does.

    Args:
        message: names the address and what is wrong, without a full stop.
        hint: what to do about it.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class AdminClient:
    """One channel to the facade whose gRPC server is at ``address`` (``HOST:PORT``). Use as a context manager.

    Every call raises ``MantlerError`` for what the facade or a machine refuses, and :class:`NoFacadeError`.

    Args:
        token: the operator's.
        security: without it only a facade on this machine can be reached.

    Raises: ``SecurityError`` where ``security`` does not allow the address.
    """

    def __init__(self, address: str, token: str, security: Security | None = None) -> None:
        self.address = address
        self._channel = (security or Security()).channel(address, CHANNEL_OPTIONS)
        self._admin = admin_pb2_grpc.AdminServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close(None)

    async def machines(self, timeout_s: float = UNARY_TIMEOUT_S) -> list[MachineStatus]:
        """Every machine of the mesh, those that went offline lately included, ordered by id."""
        with self._translated():
            answer = await self._admin.ListMachines(
                admin_pb2.ListMachinesRequest(), timeout=timeout_s, metadata=self._metadata
            )
        return [wire.status_from_proto(machine) for machine in answer.machines]

    async def drain(self, machine: str, *, draining: bool = True, timeout_s: float = 3 * UNARY_TIMEOUT_S) -> None:
        """Keeps new requests away from a machine, or lets them come again. Running ones finish."""
        with self._translated():
            await self._admin.DrainMachine(
                admin_pb2.DrainMachineRequest(machine=machine, draining=draining),
                timeout=timeout_s,
                metadata=self._metadata,
            )

    async def deploy(self, machine: str, model: str, *, pull: bool = True) -> AsyncGenerator[m.LoadProgress, None]:
        """Brings a model into memory on a machine; the last report has the stage READY.

        Closing the iterator leaves the load running there.
        """
        request = admin_pb2.DeployModelRequest(machine=machine, model=model, pull=pull)
        with self._translated():
            call = self._admin.DeployModel(request, metadata=self._metadata)
            try:
                async for message in call:
                    yield wire.progress_from_proto(message)
            finally:
                call.cancel()

    async def undeploy(self, machine: str, model: str, *, timeout_s: float = UNDEPLOY_TIMEOUT_S) -> None:
        """Takes a model out of a machine's memory once its running requests have finished."""
        with self._translated():
            await self._admin.UndeployModel(
                admin_pb2.UndeployModelRequest(machine=machine, model=model),
                timeout=timeout_s,
                metadata=self._metadata,
            )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise carried(error) or self._no_facade(error.code()) from error

    def _no_facade(self, status: grpc.StatusCode) -> NoFacadeError:
        at = self.address
        match status:
            case grpc.StatusCode.UNAVAILABLE:
                return NoFacadeError(
                    f"no facade answers at {at}",
                    "`mantler facade` serves gRPC at its --grpc; with certificates both sides need them",
                )
            case grpc.StatusCode.UNIMPLEMENTED:
                return NoFacadeError(
                    f"what answers at {at} does not serve operators",
                    "it is a runtime, or a facade of an earlier version; --grpc names a facade",
                )
            case grpc.StatusCode.CANCELLED:
                return NoFacadeError(
                    f"the facade at {at} ended the call",
                    "it is stopping; machines go on with what they have begun, and `mantler mantles` shows it",
                )
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return NoFacadeError(f"the facade at {at} has not answered in time", "it is busy, or the network is")
            case _:
                return NoFacadeError(f"the call to {at} failed: {status.name}", "the facade's log may say why")
