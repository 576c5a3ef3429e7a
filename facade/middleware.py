"""What every answer has: a request id, a line in the log, and the headers that let browsers read it (CORS)."""

from __future__ import annotations

import re

from aiohttp import web
from aiohttp.typedefs import Handler

from facade.exchange import CLIENT_GONE
from facade.web_state import EXCHANGE, SERVICES, begin

SERVER = "mantler"
"""What the answers' header ``Server`` says."""

_LIMITS = [f"x-ratelimit-{what}-{unit}" for unit in ("requests", "tokens") for what in ("limit", "remaining", "reset")]
_EXPOSED = ", ".join(["x-request-id", "retry-after", *_LIMITS])
_DEFAULT_ALLOWED = "authorization, content-type, x-request-id"
_HEADER_NAMES = re.compile(r"[A-Za-z0-9_-]+(\s*,\s*[A-Za-z0-9_-]+)*")
_MAX_ECHO_CHARS = 2048
_PREFLIGHT_MAX_AGE_S = 600


@web.middleware
async def frame_exchange(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Opens the exchange and logs its end. Answers OPTIONS on every address that exists."""
    exchange = request[EXCHANGE] = begin(request)
    status = CLIENT_GONE
    try:
        preflight = _preflight(request) if request.method == "OPTIONS" else None
        response = await handler(request) if preflight is None else preflight
        status = response.status
        return response
    finally:
        exchange.log(exchange.whole_status or status)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal handler: runs when an answer's headers are about to be written, whoever made it."""
    exchange = request.get(EXCHANGE)
    if exchange is not None:
        response.headers["x-request-id"] = exchange.request_id
        response.headers.update(exchange.headers)
    response.headers["Server"] = SERVER
    origins = request.app[SERVICES].settings.cors_origins
    origin = request.headers.get("Origin")
    if "*" in origins:
        response.headers["Access-Control-Allow-Origin"] = "*"
    else:
        response.headers.add("Vary", "Origin")
        if origin is None or origin not in origins:
            return
        response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Access-Control-Expose-Headers"] = _EXPOSED


def _preflight(request: web.Request) -> web.Response | None:
    """The answer to OPTIONS, or ``None`` for an address that does not exist."""
    refusal = request.match_info.http_exception
    if not isinstance(refusal, web.HTTPMethodNotAllowed):
        return None
    allow = ", ".join(sorted({*refusal.allowed_methods, "OPTIONS"}))
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    echo = len(wanted) <= _MAX_ECHO_CHARS and _HEADER_NAMES.fullmatch(wanted)
    return web.Response(
        status=204,
        headers={
            "Allow": allow,
            "Access-Control-Allow-Methods": allow,
            # Client libraries send headers of their own; a browser asks for each by name.
            "Access-Control-Allow-Headers": wanted if echo else _DEFAULT_ALLOWED,
            "Access-Control-Max-Age": str(_PREFLIGHT_MAX_AGE_S),
        },
    )
