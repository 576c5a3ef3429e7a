"""MachineService over gRPC."""

from __future__ import annotations

from typing import Any

import grpc

from mantler import wire
from mantler.grpc_errors import border
from mantler.v1 import machine_pb2, machine_pb2_grpc
from runtime_server.machine import ThisMachine


class MachineServicer(machine_pb2_grpc.MachineServiceServicer):
    """Answers for this machine."""

    def __init__(self, machine: ThisMachine) -> None:
        self._machine = machine

    async def GetMachine(  # noqa: N802
        self, request: machine_pb2.GetMachineRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> machine_pb2.GetMachineResponse:
        """See the proto."""
        response = machine_pb2.GetMachineResponse()
        async with border(context, "GetMachine"):
            response.machine.CopyFrom(wire.machine_to_proto(await self._machine.info()))
            response.load.CopyFrom(wire.load_to_proto(self._machine.load()))
        return response

    async def SetDraining(  # noqa: N802
        self, request: machine_pb2.SetDrainingRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> machine_pb2.SetDrainingResponse:
        """See the proto."""
        async with border(context, "SetDraining"):
            self._machine.set_draining(request.draining)
        return machine_pb2.SetDrainingResponse()
