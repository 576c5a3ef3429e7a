"""GenerationService over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc

from mantler import wire
from mantler.grpc_errors import border
from mantler.messages import TokenPrompt
from mantler.v1 import generation_pb2, generation_pb2_grpc
from runtime_server.deployments import Deployments


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Answers from the deployed models."""

    def __init__(self, deployments: Deployments) -> None:
        self._deployments = deployments

    # A coroutine that writes, not a generator: a cancelled RPC then raises at its own await, and everything the
    # request holds is released there and then, not when a generator is collected.
    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: generation_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See the proto."""
        what = f"Generate {request.request_id!r}"
        async with border(context, what), aclosing(self.responses(request)) as responses:
            async for response in responses:
                await context.write(response)

    async def responses(
        self, request: generation_pb2.GenerateRequest
    ) -> AsyncGenerator[generation_pb2.GenerateResponse, None]:
        """What answers a request. Iterate inside ``aclosing``. Raises ``MantlerError``."""
        parsed = wire.request_from_proto(request)
        generation = await self._deployments.serving(parsed.model).generation(parsed)
        async with aclosing(generation.events()) as events:
            async for event in events:
                yield wire.event_to_proto(event)

    async def CountTokens(  # noqa: N802
        self, request: generation_pb2.CountTokensRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> generation_pb2.CountTokensResponse:
        """See the proto."""
        response = generation_pb2.CountTokensResponse()
        async with border(context, "CountTokens"):
            prompt = wire.count_request_from_proto(request)
            model = self._deployments.serving(request.model)
            token_ids = await model.tokenise(prompt)
            response.tokens = len(token_ids)
            response.context_length = model.max_request_tokens
            if request.include_token_ids:
                response.token_ids.extend(token_ids)
        return response

    async def Detokenize(  # noqa: N802
        self, request: generation_pb2.DetokenizeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> generation_pb2.DetokenizeResponse:
        """See the proto."""
        response = generation_pb2.DetokenizeResponse()
        async with border(context, "Detokenize"):
            model = self._deployments.serving(request.model)
            response.text = await model.detokenise(TokenPrompt(tuple(request.token_ids)))
        return response
