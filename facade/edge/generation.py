"""GenerationService at the edge: what REST does for a key, for services that speak gRPC."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from facade.auth import authenticate
from facade.caller import Caller, admitted
from facade.edge.call import Context, exchanged, metadata
from facade.exchange import Exchange
from facade.services import Services
from mantler import wire
from mantler.messages import MAX_PRIORITY, GenerateRequest, TokenPrompt
from mantler.messages.ranges import check_int
from mantler.tenancy.store import KeyRecord
from mantler.v1 import generation_pb2, generation_pb2_grpc

_SERVICE = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name


class EdgeGenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Answers from the mesh, within the limits of the caller's key."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def authenticate(self, context: Context) -> KeyRecord:
        """The caller's key. Raises INVALID_API_KEY."""
        return await authenticate(self._services.keys, metadata(context, "authorization"), Exchange("", "", ""))

    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> None:
        """See the proto."""
        async with (
            exchanged(context, f"/{_SERVICE}/Generate") as exchange,
            self._admitted(context, exchange) as caller,
            caller.generation([_wanted(request, exchange)]) as (events, tally),
        ):
            async for event in events:
                tally.take(event)
                await context.write(wire.event_to_proto(event))
            tally.total()

    async def CountTokens(  # noqa: N802
        self, request: generation_pb2.CountTokensRequest, context: Context
    ) -> generation_pb2.CountTokensResponse:
        """See the proto."""
        response = generation_pb2.CountTokensResponse()
        async with (
            exchanged(context, f"/{_SERVICE}/CountTokens") as exchange,
            self._admitted(context, exchange) as caller,
        ):
            prompt = wire.count_request_from_proto(request)
            async with caller.using(request.model) as reservation:
                counted = await self._services.client.count_tokens(
                    request.model,
                    prompt,
                    include_token_ids=request.include_token_ids,
                    timeout_s=caller.remaining_s,
                    allowed=caller.key.machines,
                )
                reservation.settle()
            response.tokens, response.context_length = counted.tokens, counted.context_length
            response.token_ids.extend(counted.token_ids)
        return response

    async def Detokenize(  # noqa: N802
        self, request: generation_pb2.DetokenizeRequest, context: Context
    ) -> generation_pb2.DetokenizeResponse:
        """See the proto."""
        response = generation_pb2.DetokenizeResponse()
        async with (
            exchanged(context, f"/{_SERVICE}/Detokenize") as exchange,
            self._admitted(context, exchange) as caller,
        ):
            tokens = TokenPrompt(tuple(request.token_ids))
            async with caller.using(request.model) as reservation:
                response.text = await self._services.client.detokenize(
                    request.model, tokens, timeout_s=caller.remaining_s, allowed=caller.key.machines
                )
                reservation.settle()
        return response

    def _admitted(self, context: Context, exchange: Exchange) -> AbstractAsyncContextManager[Caller]:
        return admitted(self._services, exchange, metadata(context, "authorization"), context.time_remaining())


def _wanted(request: generation_pb2.GenerateRequest, exchange: Exchange) -> GenerateRequest:
    if not request.request_id:
        request.request_id = exchange.request_id
    wanted = wire.request_from_proto(request)
    # As over REST: who holds a key may stand back for others, not push ahead of them.
    check_int("priority", wanted.priority, 0, MAX_PRIORITY)
    exchange.request_id = wanted.request_id
    return wanted
