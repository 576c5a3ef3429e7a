"""GenerationService at the edge: what REST does for a key, for services that speak gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from facade.auth import authenticate, require_model
from facade.cache_salt import cache_salt
from facade.edge.call import Context, exchanged, metadata
from facade.exchange import Exchange
from facade.limits import Reservation, reserve
from facade.served import explaining
from facade.services import Services
from facade.tally import Tally
from mantler import wire
from mantler.errors import unsupported
from mantler.messages import GenerateRequest, TokenPrompt
from mantler.tenancy.store import KeyRecord
from mantler.v1 import generation_pb2, generation_pb2_grpc

_SERVICE = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name


class EdgeGenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Answers from the mesh, within the limits of the caller's key."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def authenticate(self, context: Context, exchange: Exchange | None = None) -> KeyRecord:
        """The caller's key. Raises INVALID_API_KEY."""
        exchange = exchange or Exchange("", "", "")
        return await authenticate(self._services.keys, metadata(context, "authorization"), exchange)

    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> None:
        """See the proto."""
        async with exchanged(context, f"/{_SERVICE}/Generate") as exchange:
            key = await self.authenticate(context, exchange)
            limit_s = self._services.limit_s(context.time_remaining())
            async with self._services.admission.admit(limit_s):
                wanted = _wanted(request, key, exchange)
                async with self._reserved(key, exchange, wanted.model, [wanted]) as reservation:
                    tally = Tally(exchange, reservation, n=wanted.n)
                    answer = self._services.client.generate(wanted, limit_s, allowed=key.machines)
                    async with aclosing(answer) as events:
                        async for event in events:
                            tally.take(event)
                            await context.write(wire.event_to_proto(event))
                    tally.total()

    async def CountTokens(  # noqa: N802
        self, request: generation_pb2.CountTokensRequest, context: Context
    ) -> generation_pb2.CountTokensResponse:
        """See the proto."""
        response = generation_pb2.CountTokensResponse()
        async with exchanged(context, f"/{_SERVICE}/CountTokens") as exchange:
            key = await self.authenticate(context, exchange)
            limit_s = self._services.limit_s(context.time_remaining())
            async with self._services.admission.admit(limit_s):
                prompt = wire.count_request_from_proto(request)
                async with self._reserved(key, exchange, request.model) as reservation:
                    counted = await self._services.client.count_tokens(
                        request.model,
                        prompt,
                        include_token_ids=request.include_token_ids,
                        timeout_s=limit_s,
                        allowed=key.machines,
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
        async with exchanged(context, f"/{_SERVICE}/Detokenize") as exchange:
            key = await self.authenticate(context, exchange)
            limit_s = self._services.limit_s(context.time_remaining())
            async with (
                self._services.admission.admit(limit_s),
                self._reserved(key, exchange, request.model) as reservation,
            ):
                tokens = TokenPrompt(tuple(request.token_ids))
                response.text = await self._services.client.detokenize(
                    request.model, tokens, timeout_s=limit_s, allowed=key.machines
                )
                reservation.settle()
        return response

    @asynccontextmanager
    async def _reserved(
        self, key: KeyRecord, exchange: Exchange, model: str, requests: list[GenerateRequest] | None = None
    ) -> AsyncIterator[Reservation]:
        """The model is the key's to use, and the key's limits have room."""
        exchange.model = model
        require_model(key, model)
        with reserve(self._services.limiters, key, exchange, requests or ()) as reservation:
            async with explaining(self._services.client, key, model):
                yield reservation


def _wanted(request: generation_pb2.GenerateRequest, key: KeyRecord, exchange: Exchange) -> GenerateRequest:
    if request.HasField("resume"):
        # The facade itself goes on with what it began; from elsewhere, nobody can tell what a key has paid for.
        raise unsupported("resume", "is between a facade and its machines")
    if not request.request_id:
        request.request_id = exchange.request_id
    asked = wire.request_from_proto(request)
    return replace(asked, cache_salt=cache_salt(key, asked.cache_salt))
