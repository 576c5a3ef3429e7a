"""``GET /health``."""

from __future__ import annotations

from aiohttp import web


async def health(request: web.Request) -> web.Response:
    """Says that this process serves. It needs no key and asks no runtime."""
    return web.json_response({"status": "ok"})
