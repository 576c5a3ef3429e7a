"""What hangs on aiohttp's application and on its requests."""

from __future__ import annotations

from aiohttp import web

from facade.exchange import Exchange, request_id
from facade.services import Services

SERVICES = web.AppKey("services", Services)
EXCHANGE = web.RequestKey("exchange", Exchange)


def begin(request: web.BaseRequest) -> Exchange:
    """The exchange of a request that has just come in. Keeps the client's ``x-request-id`` if it is usable."""
    return Exchange(request_id(request.headers.get("x-request-id", "")), request.method, request.path)
