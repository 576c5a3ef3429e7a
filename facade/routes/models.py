"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

from aiohttp import web

from facade.auth import authenticate, require_model
from facade.exchange import EXCHANGE
from facade.render import model_object
from facade.services import SERVICES
from mantler.errors import ErrorCode, MantlerError
from mantler.messages import ModelState


async def list_models(request: web.Request) -> web.Response:
    """The models that answer requests and that the key may use."""
    key = await authenticate(request)
    models = await request.app[SERVICES].client.list_models()
    usable = [model for model in models if model.state is ModelState.READY and key.allows(model.id)]
    return web.json_response({"object": "list", "data": [model_object(model) for model in usable]})


async def get_model(request: web.Request) -> web.Response:
    """One of them. Raises MODEL_NOT_ALLOWED, or MODEL_NOT_FOUND for one that does not answer requests."""
    key = await authenticate(request)
    model_id = request.match_info["id"]
    request[EXCHANGE].model = model_id
    require_model(key, model_id)
    model = await request.app[SERVICES].client.get_model(model_id)
    if model.state is not ModelState.READY:
        raise MantlerError(ErrorCode.MODEL_NOT_FOUND, "The model is not deployed.", param="model")
    return web.json_response(model_object(model))
