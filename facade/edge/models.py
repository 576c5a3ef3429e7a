"""ModelService at the edge: the models that a key may use."""

from __future__ import annotations

from dataclasses import replace

from facade.auth import authenticate, require_model
from facade.edge.call import Context, exchanged, metadata
from facade.exchange import Exchange
from facade.served import usable_model, usable_models
from facade.services import Services
from mantler import wire
from mantler.errors import ErrorCode, MantlerError
from mantler.messages import ModelInfo
from mantler.tenancy.store import KeyRecord
from mantler.v1 import model_pb2, model_pb2_grpc

_SERVICE = model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name


class EdgeModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Lists what answers requests. Loading is for operators."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def authenticate(self, context: Context, exchange: Exchange | None = None) -> KeyRecord:
        """The caller's key. Raises INVALID_API_KEY."""
        authorization = metadata(context, "authorization")
        return await authenticate(self._services.keys, authorization, exchange or Exchange("", "", ""))

    async def ListModels(  # noqa: N802
        self, request: model_pb2.ListModelsRequest, context: Context
    ) -> model_pb2.ListModelsResponse:
        """See the proto."""
        response = model_pb2.ListModelsResponse()
        async with exchanged(context, f"/{_SERVICE}/ListModels") as exchange:
            key = await self.authenticate(context, exchange)
            response.models.extend(map(_described, await usable_models(self._services.client, key)))
        return response

    async def GetModel(  # noqa: N802
        self, request: model_pb2.GetModelRequest, context: Context
    ) -> model_pb2.GetModelResponse:
        """See the proto."""
        response = model_pb2.GetModelResponse()
        async with exchanged(context, f"/{_SERVICE}/GetModel") as exchange:
            key = await self.authenticate(context, exchange)
            exchange.model = request.model
            require_model(key, request.model)
            response.model.CopyFrom(_described(await usable_model(self._services.client, key, request.model)))
        return response

    async def LoadModel(  # type: ignore[override]  # noqa: N802
        self, request: model_pb2.LoadModelRequest, context: Context
    ) -> None:
        """Refused."""
        async with exchanged(context, f"/{_SERVICE}/LoadModel") as exchange:
            await self.authenticate(context, exchange)
            raise _for_operators("DeployModel")

    async def UnloadModel(  # noqa: N802
        self, request: model_pb2.UnloadModelRequest, context: Context
    ) -> model_pb2.UnloadModelResponse:
        """Refused."""
        async with exchanged(context, f"/{_SERVICE}/UnloadModel") as exchange:
            await self.authenticate(context, exchange)
            raise _for_operators("UndeployModel")
        return model_pb2.UnloadModelResponse()


def _described(model: ModelInfo) -> model_pb2.Model:
    """What concerns a caller. How busy one of the machines is says how much others ask of it."""
    message = wire.model_to_proto(replace(model, deployment=None))
    if model.deployment is not None:
        message.deployment.max_request_tokens = model.deployment.max_request_tokens
    return message


def _for_operators(method: str) -> MantlerError:
    return MantlerError(
        ErrorCode.ROUTE_NOT_FOUND, f"A key does not change what machines serve. Operators use AdminService.{method}."
    )
