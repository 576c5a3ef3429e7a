"""AdminService over gRPC: operators see the machines of the mesh and change what they serve."""

from __future__ import annotations

import hmac
from contextlib import aclosing
from typing import Any

import grpc

from facade.edge.call import exchanged, metadata
from mantler import wire
from mantler.config import MAX_MACHINE_NAME_CHARS
from mantler.errors import ErrorCode, MantlerError, invalid
from mantler.routing.operations import Operations
from mantler.v1 import admin_pb2, admin_pb2_grpc

MAX_MODEL_CHARS = 256
_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Answers those who have the operator's token."""

    def __init__(self, operations: Operations, token: str) -> None:
        self._operations = operations
        self._token = token.encode()

    def _authenticate(self, context: Context) -> None:
        """Returns for an operator. Raises INVALID_TOKEN."""
        scheme, _, token = (metadata(context, "authorization") or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token):
            raise MantlerError(
                ErrorCode.INVALID_TOKEN,
                "This call is for operators: send the operator's token as 'authorization: Bearer mo_live_…'.",
            )

    async def ListMachines(  # noqa: N802
        self, request: admin_pb2.ListMachinesRequest, context: Context
    ) -> admin_pb2.ListMachinesResponse:
        """See the proto."""
        response = admin_pb2.ListMachinesResponse()
        async with exchanged(context, f"/{_SERVICE}/ListMachines"):
            self._authenticate(context)
            response.machines.extend(map(wire.status_to_proto, self._operations.machines()))
        return response

    async def DrainMachine(  # noqa: N802
        self, request: admin_pb2.DrainMachineRequest, context: Context
    ) -> admin_pb2.DrainMachineResponse:
        """See the proto."""
        async with exchanged(context, f"/{_SERVICE}/DrainMachine"):
            self._authenticate(context)
            draining = request.draining if request.HasField("draining") else True
            await self._operations.drain(_machine(request.machine), draining=draining)
        return admin_pb2.DrainMachineResponse()

    async def DeployModel(  # type: ignore[override]  # noqa: N802
        self, request: admin_pb2.DeployModelRequest, context: Context
    ) -> None:
        """See the proto."""
        async with exchanged(context, f"/{_SERVICE}/DeployModel") as exchange:
            self._authenticate(context)
            exchange.model = model = _model(request.model)
            pull = request.pull if request.HasField("pull") else True
            deploying = self._operations.deploy(_machine(request.machine), model, pull=pull)
            async with aclosing(deploying) as reports:
                async for report in reports:
                    await context.write(wire.deploy_progress_to_proto(report))

    async def UndeployModel(  # noqa: N802
        self, request: admin_pb2.UndeployModelRequest, context: Context
    ) -> admin_pb2.UndeployModelResponse:
        """See the proto."""
        async with exchanged(context, f"/{_SERVICE}/UndeployModel") as exchange:
            self._authenticate(context)
            exchange.model = model = _model(request.model)
            await self._operations.undeploy(_machine(request.machine), model, timeout_s=context.time_remaining())
        return admin_pb2.UndeployModelResponse()


def _machine(name: str) -> str:
    if not 0 < len(name) <= MAX_MACHINE_NAME_CHARS:
        raise invalid("machine", f"must be the id of a machine, of 1 to {MAX_MACHINE_NAME_CHARS} characters.")
    return name


def _model(name: str) -> str:
    if not 0 < len(name) <= MAX_MODEL_CHARS:
        raise invalid("model", f"must be the id of a model, of 1 to {MAX_MODEL_CHARS} characters.")
    return name
