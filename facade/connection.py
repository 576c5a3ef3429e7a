"""Connections that answer in error JSON what aiohttp refuses by itself, before any middleware sees it."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import _RequestHandler

from facade.errors import error_response, from_http
from facade.middleware import SERVER
from facade.web_state import EXCHANGE, begin
from mantler.errors import ErrorCode, MantlerError, internal

MAX_LINE_BYTES = 8190
"""Of the request line, and of each header."""
MAX_HEADERS = 128


class Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, and to a bug outside the middlewares. The connection closes after it.

        Raises ``ConnectionError`` if another answer has begun.
        """
        super().handle_error(request, status, exc, message)
        response = _refuse(request, _not_http(exc) if status == HTTPStatus.BAD_REQUEST else internal())
        # The signal that adds headers is not sent for a request that has no address.
        response.headers.update({"x-request-id": request[EXCHANGE].request_id, "Server": SERVER})
        response.force_close()
        return response


class Runner(web.AppRunner):
    """Runs an application on connections of :class:`Connection`."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            _translated(server.request_handler),
            request_factory=server.request_factory,
            **self._kwargs,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
        )


class _Server(web.Server):
    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)


def _translated(handle: _RequestHandler) -> _RequestHandler:
    """``handle``, with an answer of ours to the header ``Expect``, which aiohttp looks at before the middlewares."""

    async def handle_translated(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await handle(request)
        except web.HTTPException as error:
            return _refuse(request, from_http(error, request.path))

    return handle_translated


def _refuse(request: web.BaseRequest, error: MantlerError) -> web.Response:
    exchange = request[EXCHANGE] = begin(request)
    exchange.error = error.code
    exchange.log(error.row.http_status)
    return error_response(error)


def _not_http(exc: BaseException | None) -> MantlerError:
    if isinstance(exc, LineTooLong):
        told = f"The request line and each header may have at most {MAX_LINE_BYTES} bytes."
    else:
        told = f"This is not a valid HTTP/1.1 request with at most {MAX_HEADERS} headers."
    return MantlerError(ErrorCode.INVALID_REQUEST, told)
