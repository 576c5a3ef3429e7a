"""``GET /health``."""

from __future__ import annotations

from aiohttp import web

from facade.answer import json_answer


async def health(request: web.Request) -> web.Response:
    """Says that this process serves. It needs no key and asks no runtime."""
    return json_answer({"status": "ok"})
