"""``GET /openapi.json`` and ``GET /docs``, which need no key."""

from __future__ import annotations

from aiohttp import web

from facade.answer import json_answer
from facade.docs_page import docs_page
from facade.openapi import openapi_document


async def get_openapi(request: web.Request) -> web.Response:
    """The description of this API."""
    return json_answer(openapi_document())


async def get_docs(request: web.Request) -> web.Response:
    """The same as a page for people."""
    response = web.Response(text=docs_page(openapi_document()), content_type="text/html", charset="utf-8")
    response.headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'"
    return response
