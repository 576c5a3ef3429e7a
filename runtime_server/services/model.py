"""ModelService over gRPC."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import grpc

from mantler import wire
from mantler.grpc_errors import border
from mantler.v1 import model_pb2, model_pb2_grpc
from runtime_server.deployments import Deployments


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Lists, loads and unloads the models of this machine."""

    def __init__(self, deployments: Deployments) -> None:
        self._deployments = deployments

    async def ListModels(  # noqa: N802
        self, request: model_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> model_pb2.ListModelsResponse:
        """See the proto."""
        response = model_pb2.ListModelsResponse()
        async with border(context, "ListModels"):
            response.models.extend(wire.model_to_proto(model) for model in await self._deployments.models())
        return response

    async def GetModel(  # noqa: N802
        self, request: model_pb2.GetModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> model_pb2.GetModelResponse:
        """See the proto."""
        response = model_pb2.GetModelResponse()
        async with border(context, "GetModel"):
            response.model.CopyFrom(wire.model_to_proto(await self._deployments.model(request.model)))
        return response

    async def LoadModel(  # type: ignore[override]  # noqa: N802
        self, request: model_pb2.LoadModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See the proto."""
        async with (
            border(context, f"LoadModel {request.model!r}"),
            aclosing(self._deployments.load(request.model, pull=request.pull)) as reports,
        ):
            async for progress in reports:
                await context.write(wire.progress_to_proto(progress))

    async def UnloadModel(  # noqa: N802
        self, request: model_pb2.UnloadModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> model_pb2.UnloadModelResponse:
        """See the proto."""
        async with border(context, f"UnloadModel {request.model!r}"):
            await self._deployments.unload(request.model)
        return model_pb2.UnloadModelResponse()
