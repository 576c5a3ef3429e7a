"""Every failure as OpenAI's error JSON, aiohttp's own answers and our bugs included."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler

from facade.addresses import explain_nothing
from facade.answer import json_answer
from facade.web_state import EXCHANGE
from mantler.errors import ErrorCode, MantlerError, internal

_log = logging.getLogger("facade")

_OURS = {
    HTTPStatus.METHOD_NOT_ALLOWED: (ErrorCode.METHOD_NOT_ALLOWED, "This address does not take this method."),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: (ErrorCode.REQUEST_TOO_LARGE, "The request body is too large."),
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: (ErrorCode.UNSUPPORTED_MEDIA_TYPE, "The body must be application/json."),
}


def error_object(error: MantlerError) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object."""
    return {
        "error": {
            "message": error.message,
            "type": error.row.type,
            "param": error.param,
            "code": error.code.value,
        }
    }


def error_response(error: MantlerError) -> web.Response:
    """The whole answer for ``error``. ``Retry-After`` is rounded up: a client that obeys is not refused again."""
    status = error.row.http_status
    response = json_answer(error_object(error), status)
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        response.headers["Retry-After"] = str(max(math.ceil(error.retry_after_s or 1.0), 1))
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


@web.middleware
async def translate_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns whatever a handler raises into :func:`error_response`."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        response = _respond(request, from_http(error, request.path))
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted({*error.allowed_methods, "OPTIONS"}))
        return response
    except ConnectionError:
        # The client left while it was written to; aiohttp closes up.
        raise
    except Exception as error:
        return _respond(request, public_error(error, request[EXCHANGE].request_id))


def public_error(error: Exception, request_id: str) -> MantlerError:
    """What the client is told of ``error``: what was raised for it, or that there is a bug, which goes to the log."""
    if isinstance(error, MantlerError):
        return error
    _log.error("request %s failed", request_id, exc_info=error)
    return internal()


def _respond(request: web.Request, error: MantlerError) -> web.Response:
    request[EXCHANGE].error = error.code
    return error_response(error)


def from_http(error: web.HTTPException, path: str) -> MantlerError:
    """What the client of ``path`` is told where aiohttp refuses its request."""
    if error.status == HTTPStatus.NOT_FOUND:
        return MantlerError(ErrorCode.ROUTE_NOT_FOUND, explain_nothing(path))
    known = _OURS.get(HTTPStatus(error.status))
    if known is not None:
        return MantlerError(*known)
    if 400 <= error.status < 500:
        return MantlerError(ErrorCode.INVALID_REQUEST, "The request is not valid HTTP for this address.")
    _log.error("aiohttp answered with an unexpected status %d", error.status)
    return internal()
