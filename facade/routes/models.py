"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

from aiohttp import hdrs, web

from facade.answer import json_answer
from facade.auth import authenticate, require_model
from facade.render import model_object
from facade.served import usable_model, usable_models
from facade.web_state import EXCHANGE, SERVICES


async def list_models(request: web.Request) -> web.Response:
    """The models that answer requests and that the key may use."""
    services = request.app[SERVICES]
    key = await authenticate(services.keys, request.headers.get(hdrs.AUTHORIZATION), request[EXCHANGE])
    models = await usable_models(services.client, key)
    return json_answer({"object": "list", "data": [model_object(model) for model in models]})


async def get_model(request: web.Request) -> web.Response:
    """One of them. Raises MODEL_NOT_ALLOWED, or MODEL_NOT_FOUND for one that does not answer requests."""
    services = request.app[SERVICES]
    key = await authenticate(services.keys, request.headers.get(hdrs.AUTHORIZATION), request[EXCHANGE])
    model_id = request.match_info["id"]
    request[EXCHANGE].model = model_id
    require_model(key, model_id)
    return json_answer(model_object(await usable_model(services.client, key, model_id)))
